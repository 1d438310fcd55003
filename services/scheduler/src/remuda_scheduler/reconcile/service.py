"""PlanReconcile: what ReconcileInstance would do. Acts on nothing."""

from remuda.compute.v1.instance_pb2 import Instance
from remuda.compute.v1.reconcile_pb2 import ReconcileReport
from remuda.store.v1.instance_pb2 import InstanceRecord, InstanceStatus
from remuda_core.errors import not_found
from remuda_core.etcd import ops
from remuda_core.etcd.client import Etcd
from remuda_core.ids import HostId, InstanceId, ProjectId

from remuda_scheduler.engine.fencing import FencedAgents
from remuda_scheduler.reconcile.deciding import Intended, decide
from remuda_scheduler.reconcile.finding import find_copies
from remuda_scheduler.reconcile.reporting import report_of
from remuda_scheduler.store import StoreView


class Reconciler:
    """For one term."""

    def __init__(self, *, etcd: Etcd, store: StoreView, agents: FencedAgents) -> None:
        self._etcd = etcd
        self._store = store
        self._agents = agents

    async def plan(self, instance: InstanceId) -> ReconcileReport:
        """Raises INSTANCE_NOT_FOUND."""
        intended = await self._read(instance)
        found = await find_copies(self._agents, self._store, instance, on_record=intended.host_id)
        return report_of(intended, found, decide(intended, found.copies, found.silent))

    async def _read(self, instance: InstanceId) -> Intended:
        keys = self._store.keys
        seen = await self._etcd.get(keys.instance_status(instance))
        if seen is None:
            raise not_found(f"projects/-/instances/{instance}")
        status = InstanceStatus.FromString(seen.value)
        result = await self._etcd.txn(
            success=[
                ops.get(keys.instance(ProjectId(status.project), instance)),
                ops.get(keys.instance_status(instance)),
            ]
        )
        record_kv, status_kv = (response.kv for response in result.responses)
        if record_kv is None or status_kv is None:
            raise not_found(f"projects/-/instances/{instance}")
        return intended_of(
            InstanceRecord.FromString(record_kv.value), InstanceStatus.FromString(status_kv.value)
        )


def intended_of(record: InstanceRecord, status: InstanceStatus) -> Intended:
    return Intended(
        host_id=HostId(status.host_id),
        epoch=status.epoch,
        pool=status.pool,
        state=status.state,
        message=status.status_message,
        runs=record.intent == Instance.INTENT_RUNNING,
    )
