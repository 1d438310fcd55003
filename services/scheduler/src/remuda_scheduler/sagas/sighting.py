"""What the two hosts of a move show, in the words of `decide_outcome`."""

from dataclasses import dataclass

from google.rpc import code_pb2
from remuda.compute.v1.instance_pb2 import Instance
from remuda.scheduler.v1.registry_pb2 import ObservedInstance
from remuda.store.v1.saga_pb2 import LiveMigrateState
from remuda_core.errors import RemudaError
from remuda_core.ids import HostId
from remuda_core.migration.outcome import (
    ABSENT,
    UNREACHABLE,
    Job,
    Journalled,
    Outcome,
    Power,
    Sight,
    Why,
    decide_outcome,
)

from remuda_scheduler.engine.run import Run

_Run = Run[LiveMigrateState]

_POWER = {
    Instance.POWER_STATE_RUNNING: Power.RUNNING,
    Instance.POWER_STATE_PAUSED: Power.PAUSED,
    Instance.POWER_STATE_SHUTOFF: Power.SHUTOFF,
    Instance.POWER_STATE_CRASHED: Power.CRASHED,
    Instance.POWER_STATE_ABSENT: Power.ABSENT,
}
_WHY = {
    "migration": Why.MIGRATION,
    "migrated": Why.MIGRATION,
    "postcopy": Why.POSTCOPY,
    "postcopy_failed": Why.POSTCOPY_FAILED,
    "postcopy-failed": Why.POSTCOPY_FAILED,
    "shutdown": Why.SHUTDOWN,
    "crashed": Why.CRASHED,
    "failed": Why.CRASHED,
}
_JOB = {
    ObservedInstance.JOB_UNSPECIFIED: Job.NONE,
    ObservedInstance.JOB_MIGRATION_OUT: Job.OUT,
    ObservedInstance.JOB_MIGRATION_IN: Job.IN,
    ObservedInstance.JOB_OTHER: Job.OTHER,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One look at both hosts, and what it means."""

    outcome: Outcome
    source: Sight
    target: Sight


async def look(run: _Run) -> Judged:
    """At the source first: see decide_outcome."""
    memory = run.state
    source = await _see(run, HostId(memory.source_host_id), memory.source_epoch, operation="")
    target = await _see(run, HostId(memory.target_host_id), memory.target_epoch, operation=run.operation_id)
    journal = Journalled(
        source_succeeded=memory.HasField("ended") and memory.ended.status.code == code_pb2.OK,
        guest_ran=memory.desired_run_state != Instance.STATE_PAUSED,
        split=memory.split,
    )
    outcome = decide_outcome(source, target, journal)
    run.log.info("migration judged", outcome=outcome.name, source=_words(source), target=_words(target))
    return Judged(outcome=outcome, source=source, target=target)


def _words(sight: Sight) -> str:
    """For the log: why it was judged so."""
    if sight.power in (Power.UNREACHABLE, Power.ABSENT):
        return sight.power.name
    parts = [sight.power.name, sight.why.name, f"job {sight.job.name}"]
    parts += ["persistent"] * sight.persistent + ["another's"] * (not sight.ours)
    return ", ".join(parts)


async def _see(run: _Run, host: HostId, epoch: int, *, operation: str) -> Sight:
    """`operation`: that must have made the copy; empty: any."""
    if run.services.store.fenced(host):
        # Proven, not supposed: nothing runs there.
        return ABSENT
    try:
        seen = await run.services.agents.observe(host, run.instance_id)
    except RemudaError as error:
        run.log.info("cannot look at a host", host=host, error=str(error))
        return UNREACHABLE
    # UNSPECIFIED, or a state of a newer agent: as good as no answer.
    return Sight(
        power=_POWER.get(seen.power_state, Power.UNREACHABLE),
        why=_WHY.get(seen.reason, Why.OTHER),
        job=_JOB.get(seen.job, Job.OTHER),
        ours=seen.epoch == epoch and operation in ("", seen.operation_id),
        persistent=seen.persistent,
    )


def running_idle(seen: ObservedInstance) -> bool:
    """It runs and nothing moves it."""
    return seen.power_state == Instance.POWER_STATE_RUNNING and seen.job == ObservedInstance.JOB_UNSPECIFIED


def paused_idle(seen: ObservedInstance) -> bool:
    """It is paused, nothing moves it, and its memory is whole."""
    idle = seen.job == ObservedInstance.JOB_UNSPECIFIED and not seen.reason.startswith("postcopy")
    return idle and seen.power_state == Instance.POWER_STATE_PAUSED
