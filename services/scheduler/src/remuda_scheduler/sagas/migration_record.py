"""What was asked of a move, and the durable record of it: made when a target is chosen, closed with the
operation.
"""

import uuid

from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status
from remuda.compute.v1.event_pb2 import InstanceEvent
from remuda.compute.v1.instance_pb2 import Instance
from remuda.compute.v1.migration_pb2 import Migration, MigrationMilestone
from remuda.compute.v1.moving_pb2 import LiveMigrateInstanceRequest
from remuda.store.v1.instance_pb2 import MigrationRecord
from remuda.store.v1.saga_pb2 import LiveMigrateState
from remuda_core.etcd import ops
from remuda_core.ids import HostId, MigrationId
from remuda_core.names import host_name, migration_name, operation_name

from remuda_scheduler.engine.clock import now
from remuda_scheduler.engine.run import Run

_Run = Run[LiveMigrateState]

_SENTENCES = {
    "JOB_STARTED": "The source began to copy the guest.",
    "COMMAND_APPLIED": "A command was carried out.",
    "DOWNTIME_RAISED": "A longer pause was allowed at the switch-over.",
    "GUEST_PAUSED": "The guest was paused so that the copy can end.",
    "JOB_ABORTED": "The copy was given up.",
    "POST_COPY_BEGUN": "The guest was let go on at the target before all of its memory was there.",
    "SOURCE_PAUSED": "The guest was paused at the source.",
    "TARGET_RESUMED": "The guest resumed at the target.",
    "SOURCE_CLEANED": "The source gave up its copy.",
    "TARGET_DEFINED": "The target has the guest's persistent definition.",
}


def request_of(run: _Run) -> LiveMigrateInstanceRequest:
    """What was asked for."""
    request = LiveMigrateInstanceRequest()
    run.record.request.Unpack(request)
    return request


def new_migration_id(run: _Run) -> MigrationId:
    """The same one when the operation begins again after a crash before its first journal write."""
    return MigrationId(str(uuid.uuid5(uuid.UUID(run.operation_id), "migration")))


def put_migration(
    run: _Run,
    state: Migration.State.ValueType,
    *,
    end_time: Timestamp | None = None,
    error: Status | None = None,
) -> None:
    """With the next journal write. Built from the journal alone, so that a repeated step repeats it."""
    migration_id = MigrationId(run.state.migration_id)
    name = migration_name(run.project, run.instance_id, migration_id)
    run.metadata.migration = name
    record = MigrationRecord(migration=_migration(run, name, state, end_time, error))
    run.with_next_write(
        ops.put(
            run.services.keys.migration(run.instance_id, migration_id),
            record.SerializeToString(deterministic=True),
        )
    )


def _migration(
    run: _Run,
    name: str,
    state: Migration.State.ValueType,
    end_time: Timestamp | None,
    error: Status | None,
) -> Migration:
    memory, ended = run.state, run.state.ended
    target = memory.target_host_id or (memory.refused_host_ids[-1] if memory.refused_host_ids else "")
    return Migration(
        name=name,
        kind=memory.kind,
        state=state,
        source_host=host_name(HostId(memory.source_host_id)),
        target_host=host_name(HostId(target)) if target else "",
        operation=operation_name(run.operation_id),
        create_time=memory.admit_time,
        end_time=end_time,
        downtime_ms=measured_downtime(memory),
        job_duration_ms=ended.job_duration_ms if ended.HasField("job_duration_ms") else None,
        memory_bytes=ended.memory_bytes,
        disk_bytes=ended.disk_bytes,
        iterations=ended.iterations,
        guest_health=_health(memory),
        error=error,
        timeline=memory.timeline,
    )


def measured_downtime(memory: LiveMigrateState) -> int | None:
    """Milliseconds: the target's figure, else the source's. None: nobody measured it; never 0 for that."""
    if memory.finished.HasField("downtime_ms"):
        return memory.finished.downtime_ms
    return memory.ended.downtime_ms if memory.ended.HasField("downtime_ms") else None


def _health(memory: LiveMigrateState) -> Migration.GuestHealth.ValueType:
    if not memory.HasField("finished"):
        return Migration.GUEST_HEALTH_UNSPECIFIED
    if memory.finished.guest_agent_answered:
        return Migration.GUEST_HEALTH_OK
    wanted = memory.desired_run_state == Instance.STATE_RUNNING
    running = memory.finished.observed.power_state == Instance.POWER_STATE_RUNNING
    return Migration.GUEST_HEALTH_NOT_RUNNING if wanted and not running else Migration.GUEST_HEALTH_NO_AGENT


_WHILE_COPYING = frozenset(
    {"COMMAND_APPLIED", "DOWNTIME_RAISED", "GUEST_PAUSED", "JOB_ABORTED", "POST_COPY_BEGUN"}
)
"""May come several times and in any order: between the job's start and the pause at the source."""


def milestone(run: _Run, kind: str, host: str) -> None:
    """Once per kind: a repeated step does not tell it twice."""
    add_milestone(run, MigrationMilestone(type=kind, host=host_name(HostId(host)), time=now()))


def add_milestone(run: _Run, seen: MigrationMilestone) -> None:
    """As told by an agent; a joined job tells all of them again.

    Kept in the order in which they happen: the target tells when the guest resumed only after the source was
    cleaned, and two hosts' clocks cannot be compared.
    """
    timeline = run.state.timeline
    if any(known == seen if seen.type in _WHILE_COPYING else known.type == seen.type for known in timeline):
        return
    timeline.append(seen)
    timeline.sort(key=lambda one: _rank(one.type))


def _rank(kind: str) -> int:
    """Those that may come in any order share one, and stay in the order in which they came."""
    if kind in _WHILE_COPYING:
        return list(_SENTENCES).index("COMMAND_APPLIED")
    return list(_SENTENCES).index(kind) if kind in _SENTENCES else len(_SENTENCES)


def timeline_events(run: _Run) -> tuple[InstanceEvent, ...]:
    """The milestones as events of the instance, each with its own time."""
    events = []
    for seen in run.state.timeline:
        sentence = seen.detail or _SENTENCES.get(seen.type, seen.type)
        event = run.event(seen.type, sentence, host=seen.host.removeprefix("hosts/"))
        event.time.CopyFrom(seen.time)
        events.append(event)
    return tuple(events)


def tell_metrics(run: _Run, outcome: str, downtime_ms: int | None, *, reason: str = "") -> None:
    kind = Migration.Kind.Name(run.state.kind).removeprefix("KIND_").lower()
    ended = run.state.ended
    run.services.metrics.migration_ended(
        kind,
        outcome,
        None if downtime_ms is None else downtime_ms / 1000,
        duration_seconds=ended.job_duration_ms / 1000 if ended.HasField("job_duration_ms") else None,
        reason=reason,
    )
