"""Placement over the store and the attached hosts: gathers a snapshot, asks `place`, explains."""

import asyncio
import math
import time
from collections.abc import Iterator, Mapping

from remuda.compute.v1.host_pb2 import HostInventory
from remuda.store.v1.operation_pb2 import Reservation
from remuda_core.ids import HostId, InstanceId
from remuda_core.telemetry.metrics import Metrics

from remuda_scheduler.hosts.keeper import HostKeeper
from remuda_scheduler.hosts.registry import HostRegistry
from remuda_scheduler.placement.explain import explain
from remuda_scheduler.placement.model import Demand, HostFacts, Plan
from remuda_scheduler.placement.place import place
from remuda_scheduler.placement.snapshot import Usage, host_facts, usage_by_host
from remuda_scheduler.ports import Decision, NothingFits, PlacementRequest
from remuda_scheduler.store import StoreView

_LOOK_AGAIN_SECONDS = 0.1


class Placer:
    """Implements ports.Placement; lives as long as one leadership."""

    def __init__(
        self, *, store: StoreView, registry: HostRegistry, keeper: HostKeeper, metrics: Metrics
    ) -> None:
        self._store = store
        self._registry = registry
        self._keeper = keeper
        self._metrics = metrics

    async def choose(self, request: PlacementRequest) -> Decision:
        """Raises NothingFits with the explanation."""
        plan = await self.plan(request)
        explanation = explain(plan)
        if plan.chosen is None:
            raise NothingFits(explanation)
        return Decision(host_id=plan.chosen.host.id, pool=plan.chosen.pool, explanation=explanation)

    async def plan(self, request: PlacementRequest, *, patience: float = math.inf) -> Plan:
        """Decides and acts on nothing; measured in remuda_schedule_seconds.

        A new leader has not heard of its hosts yet, and "nothing fits" would be wrong: it waits for those it
        does not know, `patience` seconds at most, and never longer than until they count as unreachable.
        """
        give_up = time.monotonic() + patience
        while True:
            began = time.perf_counter()
            hosts = {facts.id: facts for facts in self.hosts()}
            plan = place(hosts.values(), demand_of(self._store, request, hosts))
            took = time.perf_counter() - began
            if plan.chosen is not None or time.monotonic() >= give_up or not _may_be_found(plan):
                break
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)
        self._metrics.schedule_seconds.observe(took)
        for name, count in plan.rejections.items():
            self._metrics.schedule_rejections.labels(filter=name).inc(count)
        return plan

    def hosts(self) -> Iterator[HostFacts]:
        """Every registered host as it is now."""
        usage = self.usage()
        for entry in self._store.hosts.items():
            host = HostId(entry.value.id)
            yield host_facts(
                host=host,
                name=entry.value.display_name,
                cordoned=entry.value.cordoned,
                state=self._keeper.state(host),
                inventory=self.inventory(host),
                usage=usage.get(host, Usage()),
            )

    def usage(self) -> dict[HostId, Usage]:
        """What instances and open operations take, per host."""
        store, keys = self._store, self._store.keys
        return usage_by_host(
            {InstanceId(entry.value.id): entry.value for entry in store.instances.items()},
            {
                InstanceId(entry.key.removeprefix(keys.instance_statuses)): entry.value
                for entry in store.statuses.items()
            },
            self._reservations(),
        )

    def _reservations(self) -> Iterator[Reservation]:
        for entry in self._store.journals.items():
            yield from entry.value.reservations

    def inventory(self, host: HostId) -> HostInventory:
        """The newest one; an empty one for a host that has never attached."""
        session = self._registry.session(host)
        if session is not None:
            return session.inventory
        status = self._store.host_status(host)
        return status.inventory if status is not None else HostInventory()


def demand_of(store: StoreView, request: PlacementRequest, hosts: Mapping[HostId, HostFacts]) -> Demand:
    """With what follows from the source, when the guest moves live."""
    networks = (store.networks.get(store.keys.network(network)) for network in request.networks)
    source = hosts.get(request.source_host_id) if request.source_host_id else None
    pool = source.pools.get(request.source_pool) if source else None
    excluded = dict(request.excluded)
    if source is not None:
        excluded.setdefault(source.id, "it is the source")
    shared = pool is not None and pool.shared
    return Demand(
        vcpus=request.vcpus,
        memory_mib=request.memory_mib,
        # On the same storage nothing is copied.
        disk_bytes=0 if shared else request.disk_bytes,
        pool=request.source_pool or request.pool,
        pool_uid=pool.uid if pool is not None and pool.shared else "",
        physical_networks=frozenset(entry.value.network.physical_network for entry in networks if entry),
        architecture=source.architecture if source else request.architecture,
        host=request.host_id,
        among=request.among,
        excluded=excluded,
        domain_type=source.domain_type if source else "",
        machine_type=request.machine_type,
        migration_transport=source.migration_transport if source else "",
    )


def _may_be_found(plan: Plan) -> bool:
    """A host was refused only because this leader has not heard of it yet."""
    return any(
        verdict.filter == "availability" and verdict.host.state == "unknown" for verdict in plan.verdicts
    )
