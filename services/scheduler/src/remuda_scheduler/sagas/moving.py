"""The step `guest_moved`: follows the source's job, then judges by what both hosts show.

    start or join the job --> it ended --+
          ^      |                       v
          |      +-- source silent --> look at source, then target --> decide_outcome
          +------- JOIN, not begun ------+        |
                                                  +--> MOVED | failed | WAIT: look again
"""

import time
from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2
from remuda.agent.v1.common_pb2 import DomainSpec
from remuda.agent.v1.migration_pb2 import MigrationEnded, MigrationPolicy, MigrationTarget, StartMigration
from remuda.compute.v1.event_pb2 import InstanceEvent
from remuda.compute.v1.instance_pb2 import Instance, LiveMigrateInstanceRequest
from remuda.compute.v1.migration_pb2 import Migration, MigrationProgress
from remuda.compute.v1.operation_pb2 import Progress
from remuda.scheduler.v1.registry_pb2 import ObservedInstance
from remuda.store.v1.saga_pb2 import LiveMigrateState
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId
from remuda_core.migration.outcome import (
    UNREACHABLE,
    Job,
    Journalled,
    Outcome,
    Power,
    Sight,
    Why,
    decide_outcome,
)
from remuda_core.migration.progress import Sample, percent
from remuda_core.names import host_name
from remuda_core.rpc.status import from_status, to_status

from remuda_scheduler.engine.run import Run, cancelled
from remuda_scheduler.sagas.abandoning import abandon_target
from remuda_scheduler.sagas.migration_record import add_milestone, put_migration

_Run = Run[LiveMigrateState]

_DEFAULT_DOWNTIME_MS = 300
_DEFAULT_TIMEOUT_SECONDS = 3600.0

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


async def move_guest(run: _Run, request: LiveMigrateInstanceRequest, spec: DomainSpec) -> None:
    """Returns when the guest is at the target. Raises RemudaError when it is known that it is not:
    GUEST_STOPPED, MIGRATION_FAILED, MIGRATION_TIMEOUT, CANCELLED, or what the source's agent said.
    """
    start = _start(run, request, spec)
    alarmed = False
    while True:
        if not run.state.HasField("ended"):
            await _follow(run, start)
        outcome = await look(run)
        run.log.info("migration judged", outcome=outcome.name)
        match outcome:
            case Outcome.MOVED:
                await run.going_on()
                return
            case Outcome.STAYED if not run.state.HasField("ended"):
                # The source is back and runs no job: it was never begun, or ended unheard.
                await run.going_on()
                await _pause(run)
            case Outcome.JOIN:
                run.state.ClearField("ended")
                await run.going_on()
                await _pause(run)
            case Outcome.STAYED | Outcome.GUEST_STOPPED | Outcome.GUEST_LOST:
                await run.going_on()
                raise _why_not(run, outcome)
            case Outcome.WAIT | Outcome.SPLIT | Outcome.SPLIT_MEMORY:
                if outcome is not Outcome.WAIT and not alarmed:
                    await _alarm(run, outcome)
                    alarmed = True
                await _wait(run, outcome)


async def _pause(run: _Run) -> None:
    """Between two looks. A job that is asked for again at once would be asked for in a tight loop."""
    import asyncio

    await asyncio.sleep(run.services.timing.look_again)
