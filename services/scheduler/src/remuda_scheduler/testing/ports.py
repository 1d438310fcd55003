"""The scheduler's ports, as small as tests need them."""

import asyncio
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from remuda.compute.v1.host_pb2 import Host, HostInventory
from remuda.compute.v1.operation_pb2 import PlacementExplanation, Progress
from remuda.image.v1.chunk_pb2 import Grant, SignedGrant
from remuda_core.auth import grants
from remuda_core.etcd import ops
from remuda_core.etcd.election import Leadership
from remuda_core.etcd.model import TxnResult
from remuda_core.ids import HostId, ImageId, OperationId

from remuda_scheduler.placement.model import HostFacts, Plan, Verdict
from remuda_scheduler.placement.placer import demand_of
from remuda_scheduler.placement.snapshot import Usage, host_facts
from remuda_scheduler.ports import Decision, NothingFits, PlacementRequest
from remuda_scheduler.store import StoreView


class MortalLeadership:
    """A term that ends, without a word, right after a chosen number of its writes."""

    def __init__(self, inner: Leadership, writes: int | None) -> None:
        self.epoch, self.cluster_id, self.lost = inner.epoch, inner.cluster_id, inner.lost
        self.died = asyncio.Event()
        self.written = 0
        self._inner = inner
        self._writes = writes

    async def txn(
        self,
        *,
        compare: Sequence[ops.Compare] = (),
        success: Sequence[ops.Op] = (),
        failure: Sequence[ops.Op] = (),
        witness: str | None = None,
        timeout: float | None = None,
    ) -> TxnResult:
        result = await self._inner.txn(
            compare=compare, success=success, failure=failure, witness=witness, timeout=timeout
        )
        self.written += 1
        if self.written == self._writes:
            self.died.set()
            await asyncio.Event().wait()
        return result


class FirstFit:
    """Takes the first host that is not excluded and has room for one more reservation or instance.

    Also the view of the hosts that preflight works on.
    """

    def __init__(self, store: StoreView, hosts: Sequence[HostId], room: int) -> None:
        self.store, self.hosts, self.room = store, hosts, room
        self.pool = "local"

    async def choose(self, request: PlacementRequest) -> Decision:
        for host in self.hosts:
            if not self._refuse(host, request):
                explanation = PlacementExplanation(chosen_host=f"hosts/{host}", considered=len(self.hosts))
                pool = request.source_pool or request.pool or self.pool
                return Decision(host_id=host, pool=pool, explanation=explanation)
        raise NothingFits(PlacementExplanation(considered=len(self.hosts), rejections={"room": 1}))

    async def plan(self, request: PlacementRequest, *, patience: float = math.inf) -> Plan:
        facts = {host: self._facts(host) for host in self.hosts if self.store.host(host) is not None}
        verdicts = [
            Verdict(host=one, filter="room" if reason else "", reason=reason)
            for one in facts.values()
            for reason in [self._refuse(one.id, request)]
        ]
        verdicts.sort(key=lambda verdict: not verdict.eligible)
        return Plan(
            chosen=next((verdict for verdict in verdicts if verdict.eligible), None),
            verdicts=verdicts,
            rejections={"room": sum(not verdict.eligible for verdict in verdicts)},
            demand=demand_of(self.store, request, facts),
        )

    def inventory(self, host: HostId) -> HostInventory:
        status = self.store.host_status(host)
        return status.inventory if status is not None else HostInventory()

    def _refuse(self, host: HostId, request: PlacementRequest) -> str:
        taken = [entry.value.host_id for entry in self.store.statuses.items()] + [
            held.host_id for entry in self.store.journals.items() for held in entry.value.reservations
        ]
        if host in request.excluded:
            return request.excluded[host]
        if request.host_id not in (None, host) or (request.among is not None and host not in request.among):
            return "another one is wanted"
        return "" if taken.count(host) < self.room else "it is full"

    def _facts(self, host: HostId) -> HostFacts:
        record, status = self.store.host(host), self.store.host_status(host)
        assert record is not None
        return host_facts(
            host=host,
            name=record.display_name,
            cordoned=record.cordoned,
            state=status.state if status is not None else Host.STATE_ENROLLING,
            inventory=self.inventory(host),
            usage=Usage(),
        )


class Grants:
    """Does not sign, and keeps what would be signed."""

    def __init__(self) -> None:
        self.given: list[Grant] = []

    def sign(
        self,
        *,
        host_id: HostId,
        operation_id: OperationId,
        images: Sequence[ImageId],
        writable_image: ImageId | None = None,
        byte_limit: int = 0,
        at_least_seconds: float = 0.0,
    ) -> SignedGrant:
        made = grants.grant(
            host=host_id,
            operation=operation_id,
            readable_images=images,
            expires=datetime.now(UTC) + timedelta(seconds=at_least_seconds),
            writable_image=writable_image,
            byte_limit=byte_limit,
        )
        self.given.append(made)
        return SignedGrant(grant=made.SerializeToString())


class Hub:
    def __init__(self) -> None:
        self.shown: dict[OperationId, list[Progress]] = {}
        self.finished: list[OperationId] = []

    def publish(self, operation_id: OperationId, progress: Progress) -> None:
        self.shown.setdefault(operation_id, []).append(progress)

    def finish(self, operation_id: OperationId) -> None:
        self.finished.append(operation_id)


class Counters:
    def __init__(self) -> None:
        self.operations: list[tuple[str, str]] = []
        self.steps: list[tuple[str, str, str]] = []
        self.migrations: list[tuple[str, str, float | None]] = []

    def operation_ended(self, action: str, outcome: str, seconds: float, *, reason: str = "") -> None:
        self.operations.append((action, outcome))

    def step_ended(self, action: str, step: str, outcome: str, seconds: float) -> None:
        self.steps.append((action, step, outcome))

    def migration_ended(
        self,
        kind: str,
        outcome: str,
        downtime_seconds: float | None,
        *,
        duration_seconds: float | None = None,
        reason: str = "",
    ) -> None:
        self.migrations.append((kind, outcome, downtime_seconds))

    def operations_running(self, count: int) -> None:
        pass

    def debts(self, count: int) -> None:
        pass
