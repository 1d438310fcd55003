"""Figures of the migration bench as Markdown tables. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from remuda_bench.migration.figures import Figures, Move
from remuda_bench.migration.plan import Kind, Tool
from remuda_bench.spread import Spread, ratios, spread

TITLES = {Kind.BLOCK: "Block migration: memory and disks", Kind.SHARED: "Shared storage: memory only"}
JOB_AIM = 1.05
OVERHEAD_AIM_MS = 400.0

Measure = Callable[[Move], float | None]

JOB = "job, from the call to the end of the source's QEMU"
COMPARED: Mapping[str, Measure] = {
    JOB: lambda move: move.job_ms,
    "job, as libvirt counts it": lambda move: move.elapsed_ms,
    "downtime, as libvirt has it": lambda move: move.downtime_ms,
    "pause, by libvirt's events": lambda move: move.pause_ms,
    "longest gap between two pings": lambda move: move.longest_gap_ms,
}
SENT: Mapping[str, Measure] = {
    "memory sent, MiB": lambda move: move.memory_bytes / (1 << 20),
    "disk sent, MiB": lambda move: move.disk_bytes / (1 << 20),
}
OWN: Mapping[str, Measure] = {
    "request -> answer (admitted)": lambda move: move.admitted_ms,
    "request -> start of the job": lambda move: move.before_ms,
    "of that, preflight": lambda move: move.steps_ms.get("preflight_passed"),
    "end of the job -> DONE at the client": lambda move: move.after_ms,
    "both overheads together": lambda move: move.overhead_ms,
}
_GROUPS = (
    ("api", "api"),
    ("schedulers (leader and standby)", "scheduler-"),
    ("agents (three)", "agent "),
    ("image-store", "image-store"),
    ("etcd", "etcd"),
)
_BELOW = "libvirtd "


def report(figures: Figures) -> str:
    """Every table, each kind under a heading of its own."""
    lines = list(_about(figures))
    for kind in figures.moves:
        lines += ["", f"### {TITLES[kind]}", "", *_kind(figures, kind)]
    lines += ["", "### Memory", "", *_memory(figures)]
    return "\n".join(lines) + "\n"


def _about(figures: Figures) -> Iterator[str]:
    machine = ", ".join(f"{name} {value}" for name, value in figures.machine.items())
    load = ", ".join(f"{value:.1f} {when}" for when, value in figures.load.items())
    runs = figures.settings["runs"]
    yield f"Taken {figures.date} in {figures.took_seconds:.0f} s, {runs} runs of each kind."
    yield f"Machine: {machine}. Load average {load}."
    yield "Milliseconds unless said otherwise; median (least to most)."


def _kind(figures: Figures, kind: Kind) -> Iterator[str]:
    ours, theirs = figures.counted(kind, Tool.REMUDA), figures.counted(kind, Tool.VIRSH)
    yield from _compared(ours, theirs)
    yield ""
    yield from _own(ours)
    yield ""
    yield from _steps(ours)
    yield ""
    yield from _processor(figures, ours, theirs)
    yield ""
    first = figures.warm_up(kind, Tool.REMUDA)
    if first is not None:
        yield (
            f"The warm-up, which is not counted and was the first move to its target: job {first.job_ms:.0f},"
            f" overheads {first.before_ms:.0f} before and {first.after_ms:.0f} after it."
        )
        yield ""
    yield f"virsh was called so: `{figures.commands[kind]}`"


def _compared(ours: Sequence[Move], theirs: Sequence[Move]) -> Iterator[str]:
    yield "| | Remuda | virsh migrate | ratio, run by run | aim |"
    yield "|---|---|---|---|---|"
    for name, measure in COMPARED.items():
        mine, raw = [measure(move) for move in ours], [measure(move) for move in theirs]
        aim = _verdict(ratios(mine, raw), JOB_AIM, f"<= {JOB_AIM}") if name == JOB else ""
        yield _row(name, _whole(spread(mine)), _whole(spread(raw)), _ratio(ratios(mine, raw)), aim)
    for name, measure in SENT.items():
        mine, raw = [measure(move) for move in ours], [measure(move) for move in theirs]
        if any(mine) or any(raw):
            yield _row(name, _tenths(spread(mine)), _tenths(spread(raw)), _ratio(ratios(mine, raw)), "")
    passes = [spread(move.iterations for move in moves) for moves in (ours, theirs)]
    yield _row("passes over memory", *map(_whole, passes), "", "")
    lost = [spread(move.pings_lost for move in moves) for moves in (ours, theirs)]
    yield _row("pings lost", *map(_whole, lost), "", "")


def _own(ours: Sequence[Move]) -> Iterator[str]:
    yield "| what Remuda adds | | aim |"
    yield "|---|---|---|"
    for name, measure in OWN.items():
        found = spread(measure(move) for move in ours)
        aim = _verdict(found, OVERHEAD_AIM_MS, f"<= {OVERHEAD_AIM_MS:.0f}") if name.startswith("both") else ""
        yield f"| {name} | {_whole(found)} | {aim} |"


def _steps(ours: Sequence[Move]) -> Iterator[str]:
    yield "| step of the operation | from its opening to its close in the journal |"
    yield "|---|---|"
    for step in ours[0].steps_ms if ours else ():
        yield f"| `{step}` | {_whole(spread(move.steps_ms.get(step) for move in ours))} |"


def _processor(figures: Figures, ours: Sequence[Move], theirs: Sequence[Move]) -> Iterator[str]:
    yield "| processor time of a migration, ms | in all | without what idling would have used |"
    yield "|---|---|---|"
    for title, prefix in (*_GROUPS, ("control plane together", "")):
        used = [_used(move, prefix) for move in ours]
        net = [_net(figures, move, prefix) for move in ours]
        yield f"| {title} | {_whole(spread(used))} | {_whole(spread(net))} |"
    for title, moves in (
        ("beside it: libvirtd of all hosts", ours),
        ("libvirtd when virsh migrates", theirs),
    ):
        used = [_used(move, _BELOW) for move in moves]
        net = [_net(figures, move, _BELOW) for move in moves]
        yield f"| {title} | {_whole(spread(used))} | {_whole(spread(net))} |"


def _memory(figures: Figures) -> Iterator[str]:
    yield "| process | resident, MiB | processor time while idle, ms per s |"
    yield "|---|---|---|"
    for name, size in figures.resident_bytes.items():
        if not name.startswith(_BELOW):
            rate = figures.idle.rate(name) * 1000
            yield f"| {name} | {size / (1 << 20):.0f} | {rate:.1f} |"
    own = [size for name, size in figures.resident_bytes.items() if not name.startswith(_BELOW)]
    idle = sum(figures.idle.rate(name) for name in figures.resident_bytes if not name.startswith(_BELOW))
    yield f"| together | {sum(own) / (1 << 20):.0f} | {idle * 1000:.1f} |"


def _names(move: Move, prefix: str) -> list[str]:
    """Those of a group; without a prefix all that are Remuda's, or etcd."""
    if prefix:
        return [name for name in move.cpu_seconds if name.startswith(prefix)]
    return [name for name in move.cpu_seconds if not name.startswith(_BELOW)]


def _used(move: Move, prefix: str) -> float:
    return sum(move.cpu_seconds[name] for name in _names(move, prefix)) * 1000


def _net(figures: Figures, move: Move, prefix: str) -> float:
    idle = sum(figures.idle.rate(name) for name in _names(move, prefix))
    return _used(move, prefix) - idle * move.window_seconds * 1000


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _verdict(found: Spread | None, aim: float, words: str) -> str:
    if found is None:
        return words
    return f"{words}: {'met' if found.median <= aim else 'MISSED'}"


def _whole(found: Spread | None) -> str:
    return "unknown" if found is None else f"{found.median:.0f} ({found.least:.0f} to {found.most:.0f})"


def _tenths(found: Spread | None) -> str:
    return "unknown" if found is None else f"{found.median:.1f} ({found.least:.1f} to {found.most:.1f})"


def _ratio(found: Spread | None) -> str:
    return "unknown" if found is None else f"{found.median:.2f} ({found.least:.2f} to {found.most:.2f})"
