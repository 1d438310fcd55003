"""Every saga of the tree, as the saga test kit needs it: how it begins, and what must be true at its ends."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from remuda.compute.v1.instance_pb2 import (
    DeleteInstanceRequest,
    Instance,
    StartInstanceRequest,
    StopInstanceRequest,
)
from remuda.compute.v1.moving_pb2 import LiveMigrateInstanceRequest
from remuda.compute.v1.reconcile_pb2 import ReconcileInstanceRequest
from remuda.image.v1.image_pb2 import Image
from remuda_core.ids import InstanceId, OperationId
from remuda_core.testing.hosts import PAUSED, RUNNING, SHUTOFF, FakeDomain
from remuda_core.testing.snapshots import COUNTS

from remuda_scheduler.testing.cluster import Cluster
from remuda_scheduler.testing.images import admit_snapshot, images_of

Check = Callable[[Cluster, InstanceId], Awaitable[None]]
Began = tuple[InstanceId, OperationId]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One verb, admitted on a cluster without a leader."""

    name: str
    action: str
    admit: Callable[[Cluster], Awaitable[Began]]
    succeeded: Check
    undone: Check
    """After a failure or a cancel before the point of no return."""
    committed_from: str = ""
    """The first step past the point of no return; empty: none is, the last txn decides."""

    def __str__(self) -> str:
        return self.name


# --- CreateInstance ---


async def _launch(cluster: Cluster) -> Began:
    return await cluster.launch()


async def _launched(cluster: Cluster, instance: InstanceId) -> None:
    await _at(cluster, instance, cluster.a, epoch=1, state=Instance.STATE_RUNNING)
    status = await cluster.status(instance)
    ports = [f"ports/lan/{port.address}" for port in status.ports]
    assert len(ports) == 1
    assert await cluster.left("ports") == ports
    assert len(await cluster.left("macs")) == 1
    assert await cluster.left("journals", "claims", "cancels", "debts") == []


async def _not_launched(cluster: Cluster, instance: InstanceId) -> None:
    await cluster.nothing_is_left()
    status = await cluster.status(instance)
    assert status.state == Instance.STATE_FAILED
    assert status.status_message
    assert (status.host_id, list(status.ports), status.pool) == ("", [], "")


# --- DeleteInstance ---


async def _delete(cluster: Cluster) -> Began:
    instance = await cluster.running()
    return instance, await cluster.admit("DeleteInstance", instance, DeleteInstanceRequest())


async def _deleted(cluster: Cluster, _instance: InstanceId) -> None:
    await cluster.nothing_is_left()
    kinds = ("instances", "instance_names", "instance_status", "events", "migrations")
    assert await cluster.left(*kinds) == []


async def _not_deleted(cluster: Cluster, instance: InstanceId) -> None:
    await _launched(cluster, instance)


# --- StartInstance, StopInstance ---


async def _stop(cluster: Cluster) -> Began:
    instance = await cluster.running()
    return instance, await cluster.admit("StopInstance", instance, StopInstanceRequest(force=True))


async def _stopped(cluster: Cluster, instance: InstanceId) -> None:
    await _at(cluster, instance, cluster.a, epoch=1, state=Instance.STATE_STOPPED, power=SHUTOFF)
    await cluster.nothing_is_open()


async def _start(cluster: Cluster) -> Began:
    instance, operation = await _stop(cluster)
    await cluster.lead()
    await cluster.ended(operation)
    await cluster.close()
    cluster.agents.log.clear()
    return instance, await cluster.admit("StartInstance", instance, StartInstanceRequest())


# --- LiveMigrateInstance ---


def _migrate(*, pool: str = "", paused: bool = False) -> Callable[[Cluster], Awaitable[Began]]:
    async def admit(cluster: Cluster) -> Began:
        instance = await cluster.running(pool=pool)
        if paused:
            domain = cluster.domain(cluster.a, instance)
            assert domain is not None
            domain.power, domain.reason = PAUSED, "user"
        request = LiveMigrateInstanceRequest(target_host=f"hosts/{cluster.b}")
        return instance, await cluster.admit("LiveMigrateInstance", instance, request)

    return admit


async def _moved(cluster: Cluster, instance: InstanceId) -> None:
    await _at(cluster, instance, cluster.b, epoch=2, state=Instance.STATE_RUNNING)
    await _only_on(cluster, instance, cluster.b)


async def _moved_paused(cluster: Cluster, instance: InstanceId) -> None:
    await _at(cluster, instance, cluster.b, epoch=2, state=Instance.STATE_PAUSED, power=PAUSED)
    await _only_on(cluster, instance, cluster.b)


async def _not_moved(cluster: Cluster, instance: InstanceId) -> None:
    await _at(cluster, instance, cluster.a, epoch=1, state=Instance.STATE_RUNNING)
    await _only_on(cluster, instance, cluster.a)


async def _not_moved_paused(cluster: Cluster, instance: InstanceId) -> None:
    await _at(cluster, instance, cluster.a, epoch=1, state=Instance.STATE_RUNNING, power=PAUSED)
    await _only_on(cluster, instance, cluster.a)


async def _only_on(cluster: Cluster, instance: InstanceId, where: str) -> None:
    assert [host.id for host in cluster.agents.hosts.values() if not host.empty] == [where]
    directory = cluster.agents.hosts[cluster.b if where == cluster.b else cluster.a].directories[instance]
    assert directory.role == "owner"
    await cluster.nothing_is_open()


# --- SnapshotInstance ---


async def _snapshot(cluster: Cluster) -> Began:
    instance = await cluster.running()
    return instance, await admit_snapshot(cluster, instance)


async def _snapshot_made(cluster: Cluster, instance: InstanceId) -> None:
    (image,) = await images_of(cluster, instance)
    assert image.image.state == Image.STATE_ACTIVE
    assert image.charge.stored_bytes == COUNTS.stored_bytes
    await _launched(cluster, instance)
    assert not cluster.agents.hosts[cluster.a].snapshots.backups


async def _no_snapshot(cluster: Cluster, instance: InstanceId) -> None:
    (image,) = await images_of(cluster, instance)
    assert image.image.state == Image.STATE_DELETING
    await _launched(cluster, instance)
    assert not cluster.agents.hosts[cluster.a].snapshots.backups


# --- ReconcileInstance ---


async def _reconcile(cluster: Cluster) -> Began:
    """Its domain was undefined by hand, and one that is off was defined on another host."""
    instance = await cluster.running()
    del cluster.agents.hosts[cluster.a].domains[instance]
    cluster.agents.hosts[cluster.b].domains[instance] = FakeDomain(epoch=1, operation="by hand")
    return instance, await cluster.admit("ReconcileInstance", instance, ReconcileInstanceRequest())


async def _reconciled(cluster: Cluster, instance: InstanceId) -> None:
    await _launched(cluster, instance)
    await _only_on(cluster, instance, cluster.a)


async def _not_reconciled(cluster: Cluster, instance: InstanceId) -> None:
    assert cluster.domain(cluster.a, instance) is None
    assert cluster.domain(cluster.b, instance) is not None
    status = await cluster.status(instance)
    assert (status.host_id, status.epoch) == (cluster.a, 1)
    await cluster.nothing_is_open()


async def _at(
    cluster: Cluster,
    instance: InstanceId,
    host: str,
    *,
    epoch: int,
    state: Instance.State.ValueType,
    power: Instance.PowerState.ValueType = RUNNING,
) -> None:
    """Record and host agree."""
    status = await cluster.status(instance)
    assert (status.host_id, status.epoch, status.state) == (host, epoch, state)
    (domain,) = [one.domains[instance] for one in cluster.agents.hosts.values() if one.id == host]
    assert (domain.epoch, domain.power, domain.persistent) == (epoch, power, True)


SCENARIOS = (
    Scenario(
        name="create",
        action="CreateInstance",
        admit=_launch,
        succeeded=_launched,
        undone=_not_launched,
    ),
    Scenario(
        name="delete",
        action="DeleteInstance",
        admit=_delete,
        succeeded=_deleted,
        undone=_not_deleted,
        committed_from="marked_deleting",
    ),
    Scenario(
        name="start",
        action="StartInstance",
        admit=_start,
        succeeded=_launched,
        undone=_stopped,
    ),
    Scenario(
        name="stop",
        action="StopInstance",
        admit=_stop,
        succeeded=_stopped,
        undone=_launched,
        committed_from="guest_off",
    ),
    Scenario(
        name="live migrate, local disks",
        action="LiveMigrateInstance",
        admit=_migrate(),
        succeeded=_moved,
        undone=_not_moved,
        committed_from="ownership_moved",
    ),
    Scenario(
        name="live migrate, shared disks, paused",
        action="LiveMigrateInstance",
        admit=_migrate(pool="shared", paused=True),
        succeeded=_moved_paused,
        undone=_not_moved_paused,
        committed_from="ownership_moved",
    ),
    Scenario(
        name="snapshot",
        action="SnapshotInstance",
        admit=_snapshot,
        succeeded=_snapshot_made,
        undone=_no_snapshot,
        committed_from="transfer_ended",
    ),
    Scenario(
        name="reconcile",
        action="ReconcileInstance",
        admit=_reconcile,
        succeeded=_reconciled,
        undone=_not_reconciled,
        committed_from="strays_contained",
    ),
)
