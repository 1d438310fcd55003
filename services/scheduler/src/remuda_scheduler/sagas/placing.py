"""Taking a host: the decision and its reservation, journalled before the next decision is made."""

from collections.abc import Callable

from remuda.store.v1.instance_pb2 import InstanceRecord
from remuda.store.v1.operation_pb2 import Reservation
from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd import ops
from remuda_core.ids import Epoch, HostId
from remuda_core.names import host_name, parse_host

from remuda_scheduler.engine.run import Run
from remuda_scheduler.engine.saga import S
from remuda_scheduler.ports import Decision, NothingFits, PlacementRequest

_TRIES = 5
_CACHE_WAIT_SECONDS = 10.0


async def reserve(
    run: Run[S],
    record: InstanceRecord,
    request: PlacementRequest,
    epoch: Epoch,
    remember: Callable[[Decision], None],
    *,
    may: Callable[[], bool] = lambda: True,
) -> bool:
    """Chooses a host and journals the reservation, with what `remember` puts into the saga's state. False:
    `may`, which is asked when all earlier reservations show, says no.

    Raises RemudaError NO_HOST_FITS; the explanation then stands in the operation all the same. Raises
    Unavailable, when the caches do not catch up.
    """
    key_of = run.services.keys.host
    async with run.services.placing():
        if not may():
            return False
        for _ in range(_TRIES):
            # Taken before the choice: whatever changed since fails the compare.
            seen = {entry.key: entry.mod_revision for entry in run.services.store.hosts.items()}
            decision = await _choose(run, request)
            key = key_of(decision.host_id)
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
            # Not only that it exists: DeleteHost wants the host cordoned and then empty, and neither would
            # hold if a choice made before the cordon were journalled after it.
            if await run.commit(compare=[ops.mod_is(key, seen.get(key, -1))]):
                return True
            # Cordoned or deleted a moment ago: choose again when the cache shows it.
            present = await run.services.etcd.range_key(key)
            await run.services.store.hosts.wait_revision(present.revision, _CACHE_WAIT_SECONDS)
        drop_reservation(run)
        raise RemudaError(Reason.UNAVAILABLE, f"{_TRIES} times in a row the host changed while it was chosen")


async def _choose(run: Run[S], request: PlacementRequest) -> Decision:
    try:
        decision = await run.services.placement.choose(request)
    except NothingFits as none:
        run.metadata.placement.CopyFrom(none.explanation)
        raise RemudaError(Reason.NO_HOST_FITS, str(none)) from none
    run.metadata.placement.CopyFrom(decision.explanation)
    return decision


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
