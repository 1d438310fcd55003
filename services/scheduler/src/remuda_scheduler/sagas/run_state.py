"""What the guest did before its move, and that it does so again at the source when the move fails."""

from remuda.agent.v1.agent_pb2 import StartDomain
from remuda.compute.v1.instance_pb2 import Instance
from remuda.store.v1.saga_pb2 import LiveMigrateState
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId

from remuda_scheduler.engine.attempts import Attempts
from remuda_scheduler.engine.position import times_begun
from remuda_scheduler.engine.run import Run
from remuda_scheduler.sagas.abandoning import abandoned

_Run = Run[LiveMigrateState]


async def note_run_state(run: _Run) -> None:
    """What is seen now counts, not what the record says: the guest may have been paused since."""
    seen = await run.services.agents.observe(HostId(run.state.source_host_id), run.instance_id)
    match seen.power_state:
        case Instance.POWER_STATE_RUNNING:
            run.state.desired_run_state = Instance.STATE_RUNNING
        case Instance.POWER_STATE_PAUSED:
            run.state.desired_run_state = Instance.STATE_PAUSED
        case other:
            shown = Instance.PowerState.Name(other)
            raise RemudaError(
                Reason.GUEST_STOPPED, f"the guest is not running at the source: {shown} ({seen.reason})"
            )


async def restore_run_state(run: _Run) -> None:
    """After the target's copy is gone or owed: the guest goes on at the source as it did before.

    libvirt resumes it by itself nearly always. A guest that shut itself down stays off.
    """
    ran = run.state.desired_run_state == Instance.STATE_RUNNING
    # Abandoned means that it is unknown where the guest is: never resume on a guess.
    if not ran or not times_begun(run.journal, "guest_moved") or await abandoned(run):
        return
    source = HostId(run.state.source_host_id)
    attempts = Attempts(run.services.timing, run.silent, stubborn=True)
    while True:
        try:
            seen = await run.services.agents.observe(source, run.instance_id)
            off = (Instance.POWER_STATE_SHUTOFF, Instance.POWER_STATE_CRASHED)
            lost = seen.power_state in off and seen.reason != "shutdown"
            if seen.power_state == Instance.POWER_STATE_PAUSED or lost:
                await run.order(source, run.state.source_epoch, start_domain=StartDomain())
            return
        except RemudaError as error:
            if await attempts.again(error, source):
                continue
            # Not a debt: one that is paid days later would start a guest that was stopped since.
            run.log.warning("the guest could not be resumed at the source", error=str(error))
            return
