"""What an operation looks like in plain lines. Pure: no terminal, no clock, no call."""

from dataclasses import dataclass

from remuda.compute.v1 import migration_pb2, operation_pb2

from remuda_cli.output.snapshot_view import counts_line
from remuda_cli.output.table import Label
from remuda_cli.output.units import human_bytes, human_ms, human_rate, human_seconds
from remuda_cli.output.words import enum_word, last_part, moment

Metadata = operation_pb2.OperationMetadata
MigrationProgress = migration_pb2.MigrationProgress

_DOING = {
    "CreateInstance": "launching",
    "DeleteInstance": "deleting",
    "StartInstance": "starting",
    "StopInstance": "stopping",
    "LiveMigrateInstance": "live-migrating",
    "SnapshotInstance": "taking a snapshot of",
}
_PHASES = {
    MigrationProgress.PHASE_PREPARING: "preparing",
    MigrationProgress.PHASE_DISKS: "copying disks",
    MigrationProgress.PHASE_MEMORY: "copying memory",
    MigrationProgress.PHASE_SWITCH_OVER: "switching over",
    MigrationProgress.PHASE_POST_COPY: "post-copy",
    MigrationProgress.PHASE_FINISHING: "finishing",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What people call the things that an operation is about."""

    target: str
    source_host: str = ""
    target_host: str = ""

    @property
    def route(self) -> str:
        """Empty until a host is known."""
        if not self.source_host and not self.target_host:
            return ""
        return f"{self.source_host or '?'} -> {self.target_host or '?'}"


def title(metadata: Metadata, subject: Subject) -> str:
    """`live-migrating web-1, host1 -> host2`."""
    doing = _DOING.get(metadata.action, metadata.action or "operation on")
    route = f", {subject.route}" if subject.route else ""
    return f"{doing} {subject.target}{route}"


def phase_of(metadata: Metadata) -> str:
    """What is going on now, in words."""
    match metadata.state:
        case Metadata.STATE_PENDING:
            return "waiting for a scheduler"
        case Metadata.STATE_UNDOING:
            return f"undoing {metadata.phase}".rstrip()
        case Metadata.STATE_WAITING_FOR_HOST:
            return f"waiting for a host that does not answer, at {metadata.phase or 'its next step'}"
        case Metadata.STATE_WAITING_FOR_OPERATOR:
            return f"waiting for an operator to decide, see the events of the instance, at {metadata.phase}"
    if metadata.progress.HasField("queue"):
        return "waiting for its turn"
    migration = migration_of(metadata)
    if migration is not None and migration.phase in _PHASES:
        return _PHASES[migration.phase]
    return metadata.phase or enum_word(metadata, "state").lower()


def migration_of(metadata: Metadata) -> MigrationProgress | None:
    if metadata.HasField("progress") and metadata.progress.HasField("migration"):
        return metadata.progress.migration
    return None


def sent_disks(progress: MigrationProgress) -> str:
    """Empty when no disk is copied."""
    if not progress.disk_total_bytes:
        return ""
    return (
        f"{human_bytes(progress.disk_processed_bytes)} sent, {human_bytes(progress.disk_remaining_bytes)}"
        f" left of {human_bytes(progress.disk_total_bytes)}"
    )


def sent_memory(progress: MigrationProgress) -> str:
    """Pages that the guest rewrites are sent again: what was sent may exceed what there is."""
    if not progress.memory_total_bytes:
        return ""
    again = f", pass {progress.iteration}" if progress.iteration else ""
    return (
        f"{human_bytes(progress.memory_processed_bytes)} sent, {human_bytes(progress.memory_remaining_bytes)}"
        f" left of {human_bytes(progress.memory_total_bytes)}{again}"
    )


def rates(progress: MigrationProgress) -> str:
    dirty = f", guest rewrites {human_rate(progress.dirty_bytes_per_second)}"
    return f"{human_rate(progress.throughput_bytes_per_second)}" + (
        dirty if progress.dirty_bytes_per_second else ""
    )


def convergence(progress: MigrationProgress) -> str:
    """When it will be over, or why it will not."""
    if progress.does_not_converge:
        return (
            f"does not converge, because {human_rate(progress.dirty_bytes_per_second)} are rewritten"
            f" and {human_rate(progress.throughput_bytes_per_second)} sent"
        )
    if progress.HasField("eta_ms"):
        return f"ETA {human_ms(progress.eta_ms)}"
    return "ETA not known yet"


def expected_downtime(progress: MigrationProgress) -> str:
    """Empty until QEMU has an estimate."""
    if not progress.expected_downtime_ms:
        return ""
    return f"expected downtime {human_ms(progress.expected_downtime_ms)}"


def plain_line(metadata: Metadata, elapsed_seconds: float, label: Label = last_part) -> str:
    """All of one moment on one line, for logs and pipes."""
    parts = [f"{human_seconds(elapsed_seconds):>8}  {phase_of(metadata)}"]
    progress = metadata.progress
    if progress.percent:
        parts[0] += f" {progress.percent} %"
    migration = migration_of(metadata)
    if migration is not None:
        copying = (MigrationProgress.PHASE_DISKS, MigrationProgress.PHASE_MEMORY)
        disks, memory = sent_disks(migration), sent_memory(migration)
        parts += [f"disks {disks}"] if disks and migration.phase != MigrationProgress.PHASE_MEMORY else []
        parts += [f"memory {memory}"] if memory and migration.phase != MigrationProgress.PHASE_DISKS else []
        if migration.phase in copying:
            parts += [rates(migration), convergence(migration), expected_downtime(migration)]
    elif progress.HasField("queue"):
        parts[0] += f": {queue_line(progress.queue, label)}"
    elif progress.HasField("transfer"):
        parts.append(transfer_line(progress.transfer.done_bytes, progress.transfer.total_bytes))
    elif progress.HasField("snapshot"):
        parts.append(counts_line(progress.snapshot))
    elif progress.message:
        parts.append(progress.message)
    return "; ".join(part for part in parts if part)


def queue_line(queue: operation_pb2.QueueProgress, label: Label) -> str:
    """`2nd, host1 may send 2 at a time`."""
    what, _, host = queue.limit.partition(" of ")
    who = label(host) if host else "each host"
    at_a_time = f"{queue.allowed} at a time"
    limits = {
        "outgoing": f"{who} may send {at_a_time}",
        "incoming": f"{who} may receive {at_a_time}",
        "cluster": f"the cluster may move {at_a_time}",
        "link": f"the two hosts may move {at_a_time} between them",
    }
    return f"{_ordinal(queue.position)}, {limits.get(what, f'{queue.limit}: {at_a_time}')}"


def _ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, 21st."""
    endings = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{'th' if number % 100 in (11, 12, 13) else endings.get(number % 10, 'th')}"


def transfer_line(done_bytes: int, total_bytes: int) -> str:
    if not total_bytes:
        return human_bytes(done_bytes)
    return f"{human_bytes(done_bytes)} of {human_bytes(total_bytes)}"


def milestone(metadata: Metadata) -> tuple[object, ...]:
    """Changes when a plain display has to say something at once."""
    migration = migration_of(metadata)
    return (
        metadata.state,
        metadata.phase,
        migration.phase if migration else 0,
        migration.does_not_converge if migration else False,
        metadata.cancel_requested,
        metadata.progress.queue.position,
        metadata.progress.queue.limit,
    )


def outcome(
    metadata: Metadata, subject: Subject, migration: migration_pb2.Migration | None, *, elapsed_seconds: float
) -> str:
    """One sentence about an operation that ended well."""
    took = f"in {human_seconds(elapsed_seconds)}"
    if metadata.action != "LiveMigrateInstance":
        return f"{metadata.action or 'operation'} {subject.target}: done {took}"
    if not metadata.migration:
        return f"{subject.target} did not move: it was there already"
    if migration is None:
        return f"{subject.target} moved {took}; its migration record could not be read"
    text = f"{subject.target} moved from {subject.source_host} to {subject.target_host} {took}; "
    if migration.HasField("downtime_ms"):
        text += f"measured downtime {human_ms(migration.downtime_ms)}"
    else:
        text += "downtime not known"
    sent = [
        f"{human_bytes(count)} of {what}"
        for count, what in ((migration.memory_bytes, "memory"), (migration.disk_bytes, "disk"))
        if count
    ]
    if sent:
        text += f"; sent {' and '.join(sent)}"
    if migration.guest_health == migration_pb2.Migration.GUEST_HEALTH_NOT_RUNNING:
        text += "; WARNING: its CPUs do not run"
    return text


def elapsed(metadata: Metadata, now_seconds: float) -> float:
    """Seconds from admission to the end, or to `now_seconds` (Unix time) while it runs. A client's clock
    that is behind the server's gives 0.
    """
    if not metadata.HasField("create_time"):
        return 0.0
    end = moment(metadata.end_time).timestamp() if metadata.HasField("end_time") else now_seconds
    return max(0.0, end - moment(metadata.create_time).timestamp())
