"""What starting and stopping have in common."""

from remuda.store.v1.saga_pb2 import PowerState
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId

from remuda_scheduler.engine.run import Run


async def begin_on_host(run: Run[PowerState]) -> None:
    """Raises STATE_FORBIDS_ACTION for an instance without a host: its launch has failed."""
    _, status = await run.instance()
    if not status.host_id:
        raise RemudaError(
            Reason.STATE_FORBIDS_ACTION,
            "the instance is on no host: its launch failed; delete it and launch another",
        )
    run.state.host_id, run.state.pool, run.state.epoch = status.host_id, status.pool, status.epoch


def host_of(run: Run[PowerState]) -> str:
    return run.state.host_id


async def note_power_state(run: Run[PowerState]) -> None:
    """What the guest did before we touched it, so that an undo does not take more than we gave."""
    seen = await run.services.agents.observe(HostId(run.state.host_id), run.instance_id)
    run.state.before = seen.power_state
