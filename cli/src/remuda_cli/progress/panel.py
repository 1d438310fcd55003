"""What an operation looks like on a terminal. Pure: metadata in, a rich renderable out."""

from google.protobuf.timestamp_pb2 import Timestamp
from remuda.compute.v1 import operation_pb2
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from remuda_cli.output.snapshot_view import counts_line
from remuda_cli.output.table import Label
from remuda_cli.output.units import human_seconds
from remuda_cli.output.words import moment
from remuda_cli.progress import lines
from remuda_cli.progress.lines import Metadata, MigrationProgress, Subject

BAR_WIDTH = 20
"""With the longest usual figures beside it, a line fits into 80 columns."""
_LABEL_WIDTH = 6
_Step = operation_pb2.OperationStep
_MARKS = {
    _Step.STATE_RUNNING: ("*", "cyan"),
    _Step.STATE_DONE: ("+", "green"),
    _Step.STATE_FAILED: ("x", "red"),
    _Step.STATE_UNDOING: ("<", "yellow"),
    _Step.STATE_UNDONE: ("-", "yellow"),
    _Step.STATE_OWED: ("!", "magenta"),
}


def operation_panel(
    metadata: Metadata, subject: Subject, label: Label, *, now_seconds: float, note: str = ""
) -> RenderableType:
    """`note`: what the client itself has to say, for example that it reconnects."""
    elapsed = lines.elapsed(metadata, now_seconds)
    head = Text(lines.title(metadata, subject), style="bold")
    head.append(f"  {human_seconds(elapsed)}", style="not bold")
    parts: list[RenderableType] = [head, *_steps(metadata, label, now_seconds)]
    migration = lines.migration_of(metadata)
    if migration is not None:
        parts.append(_bars(metadata, migration))
        parts += _figures(migration)
    elif metadata.progress.HasField("queue"):
        waits = f"{lines.phase_of(metadata)}: {lines.queue_line(metadata.progress.queue, label)}"
        parts.append(Text(f"  {waits}", style="magenta"))
    elif metadata.HasField("progress"):
        parts.append(_progress(metadata.progress))
    if metadata.state in (Metadata.STATE_WAITING_FOR_HOST, Metadata.STATE_WAITING_FOR_OPERATOR):
        parts.append(Text(f"  {lines.phase_of(metadata)}", style="magenta"))
    if metadata.cancel_requested:
        parts.append(Text("  cancel requested", style="yellow"))
    if note:
        parts.append(Text(f"  {note}", style="yellow"))
    return Group(*parts)


def _steps(metadata: Metadata, label: Label, now_seconds: float) -> list[Text]:
    shown = []
    for step in metadata.steps:
        mark, style = _MARKS.get(step.state, ("?", ""))
        line = Text("  ").append(mark, style=style).append(f" {step.name}")
        if step.host:
            line.append(f"  {label(step.host)}", style="cyan")
        if step.HasField("start_time"):
            line.append(f"  {human_seconds(_duration(step, now_seconds))}", style="dim")
        if step.error.message:
            line.append(f"  {step.error.message}", style="red")
        shown.append(line)
    return shown


def _duration(step: operation_pb2.OperationStep, now_seconds: float) -> float:
    def seconds(stamp: Timestamp) -> float:
        return moment(stamp).timestamp()

    end = seconds(step.end_time) if step.HasField("end_time") else now_seconds
    return max(0.0, end - seconds(step.start_time))


def _bars(metadata: Metadata, progress: MigrationProgress) -> Table:
    grid = _grid()
    grid.add_row(
        "", _bar(metadata.progress.percent, 100), f"{metadata.progress.percent} %, {lines.phase_of(metadata)}"
    )
    for name, text, remaining, total in (
        ("disks", lines.sent_disks(progress), progress.disk_remaining_bytes, progress.disk_total_bytes),
        ("memory", lines.sent_memory(progress), progress.memory_remaining_bytes, progress.memory_total_bytes),
    ):
        if text:
            grid.add_row(name, _bar(total - remaining, total), text)
    return grid


def _figures(progress: MigrationProgress) -> list[Text]:
    """Rates and forecast; on lines of their own, so that a narrow terminal does not break them up."""
    if progress.phase not in (MigrationProgress.PHASE_DISKS, MigrationProgress.PHASE_MEMORY):
        return []
    rates = Text("rate".rjust(_LABEL_WIDTH) + " " + lines.rates(progress))
    if downtime := lines.expected_downtime(progress):
        rates.append(f", {downtime}")
    forecast = Text("ahead".rjust(_LABEL_WIDTH) + " ")
    forecast.append(lines.convergence(progress), "bold yellow" if progress.does_not_converge else "bold")
    return [rates, forecast]


def _progress(progress: operation_pb2.Progress) -> Table:
    grid = _grid()
    text = progress.message
    if progress.HasField("transfer"):
        text = lines.transfer_line(progress.transfer.done_bytes, progress.transfer.total_bytes)
    if progress.HasField("snapshot"):
        text = counts_line(progress.snapshot)
    grid.add_row("", _bar(progress.percent, 100), f"{progress.percent} %  {text}".rstrip())
    return grid


def _grid() -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=_LABEL_WIDTH, justify="right", no_wrap=True)
    grid.add_column(min_width=BAR_WIDTH)
    grid.add_column()
    return grid


def _bar(done: int, total: int) -> ProgressBar:
    return ProgressBar(total=max(1, total), completed=max(0, min(done, total)), width=BAR_WIDTH)
