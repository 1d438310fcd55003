"""Two hosts run the guest of a move: the copy that is not on record is paused, never destroyed.

Its disk may hold what the other's does not, so what becomes of it is an operator's decision: he ends one of
the two on its host, or deletes the instance. engine/splits.py does the same for a copy that shows itself when
the operation is long over.
"""

from remuda.agent.v1.agent_pb2 import PauseDomain
from remuda.compute.v1.event_pb2 import InstanceEvent
from remuda.store.v1.saga_pb2 import LiveMigrateState
from remuda_core.errors import RemudaError
from remuda_core.ids import Epoch, HostId

from remuda_scheduler.engine.run import Run

_Run = Run[LiveMigrateState]


async def tell_split(run: _Run, message: str, *, host: str = "") -> None:
    """An event about it, in one txn with the journal."""
    event = run.event("MIGRATION_SPLIT", message, host=host, severity=InstanceEvent.SEVERITY_ERROR)
    run.log.error("migration split", message=message)
    await run.change_status(lambda _: None, events=[event])


async def hold_apart(run: _Run, loser: HostId, epoch: Epoch | int) -> None:
    """Pauses the copy that is not on record. May be called at every look: it is told once."""
    if not run.state.split:
        # Journalled before the order: afterwards two copies of which one is paused look like a clean end.
        run.state.split = True
        message = "Both hosts run the guest: the second copy is paused, an operator has to decide about it."
        await tell_split(run, message, host=loser)
    before = run.asked, run.last_order
    try:
        await run.order(loser, epoch, step="second_copy_paused", pause_domain=PauseDomain())
    except RemudaError as error:
        run.log.warning("the second copy is not paused yet", host=loser, error=str(error))
    finally:
        # What becomes of the step when it fails is judged by its own order, not by this one beside it.
        run.asked, run.last_order = before
