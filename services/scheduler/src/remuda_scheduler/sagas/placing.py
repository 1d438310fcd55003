"""Taking a host: the decision and its reservation, journalled before the next decision is made."""

from collections.abc import Callable

from remuda.store.v1.instance_pb2 import InstanceRecord
from remuda.store.v1.operation_pb2 import Reservation
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import Epoch, HostId
from remuda_core.names import host_name, parse_host

from remuda_scheduler.engine.run import Interrupted, Run
from remuda_scheduler.engine.saga import S
from remuda_scheduler.ports import Decision, NothingFits, PlacementRequest


async def reserve(
    run: Run[S],
    record: InstanceRecord,
    request: PlacementRequest,
    epoch: Epoch,
    remember: Callable[[Decision], None],
) -> None:
    """Chooses a host and journals the reservation, with what `remember` puts into the saga's state.

    Raises RemudaError NO_HOST_FITS; the explanation then stands in the operation all the same.
    """
    async with run.services.placing():
        try:
            decision = await run.services.placement.choose(request)
        except NothingFits as none:
            run.metadata.placement.CopyFrom(none.explanation)
            raise RemudaError(Reason.NO_HOST_FITS, str(none)) from none
        run.metadata.placement.CopyFrom(decision.explanation)
        del run.journal.reservations[:]
        run.journal.reservations.append(
            Reservation(
                host_id=decision.host_id,
                instance_id=run.instance_id,
                vcpus=record.vcpus,
                memory_mib=record.memory_mib,
                disk_bytes=record.disk_bytes,
                pool=decision.pool,
                epoch=epoch,
            )
        )
        remember(decision)
        if not await run.commit():
            raise Interrupted("a journal write without conditions was refused")


def reserved(run: Run[S], host: str) -> bool:
    """A crash may have come between the reservation and the end of its step."""
    return host != "" and any(one.host_id == host for one in run.journal.reservations)


def drop_reservation(run: Run[S]) -> None:
    """Takes effect with the next journal write."""
    del run.journal.reservations[:]


def resolve_host(run: Run[S], name: str) -> HostId | None:
    """From a name in a request, where the host may be given by UUID or host name; None for an empty one.

    Raises RemudaError HOST_NOT_FOUND.
    """
    if not name:
        return None
    given = parse_host(name, field="host")
    found = run.services.store.host_named(given)
    if found is None:
        raise RemudaError(
            Reason.HOST_NOT_FOUND, f"{host_name(given)} does not exist", resource=host_name(given)
        )
    return found


def indebted(run: Run[S]) -> dict[HostId, str]:
    """Hosts that still owe clean-up for this instance: a new copy there would be mistaken for the old one."""
    return {
        HostId(entry.value.host_id): "it still owes clean-up for this instance"
        for entry in run.services.store.debts.items()
        if entry.value.instance_id == run.instance_id
    }
