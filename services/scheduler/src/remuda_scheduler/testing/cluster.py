"""A cluster for sagas: real etcd, hosts in memory, a leader that can be killed at any write."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from remuda.agent.v1.common_pb2 import LeaderRef
from remuda.compute.v1.host_pb2 import Host, HostInventory, HostPool
from remuda.compute.v1.instance_pb2 import (
    CreateInstanceRequest,
    DeleteInstanceRequest,
    Instance,
    NetworkInterface,
)
from remuda.compute.v1.network_pb2 import Network
from remuda.compute.v1.operation_pb2 import OperationMetadata
from remuda.store.v1.host_pb2 import HostRecord, HostStatus, NetworkRecord
from remuda.store.v1.image_pb2 import ImageRef
from remuda.store.v1.instance_pb2 import Claim, EventRecord, InstanceRecord, InstanceStatus
from remuda.store.v1.operation_pb2 import CancelRecord, OperationRecord
from remuda_core.etcd import ops
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.election import Election, Leadership
from remuda_core.etcd.keys import Keys
from remuda_core.ids import HostId, ImageId, InstanceId, NetworkId, OperationId, ProjectId
from remuda_core.testing.hosts import FakeDirectory, FakeDomain, FakeHosts
from remuda_core.testing.probes import FakeProbes, FakeSight
from remuda_core.testing.waiting import wait_for

from remuda_scheduler.engine.clock import now
from remuda_scheduler.engine.engine import Engine
from remuda_scheduler.engine.fencing import FencedAgents
from remuda_scheduler.engine.saga import Saga
from remuda_scheduler.engine.services import Services, Timing
from remuda_scheduler.live.control import ControlHub
from remuda_scheduler.preflight.prober import Prober
from remuda_scheduler.preflight.service import Preflight
from remuda_scheduler.sagas.registry import SAGAS
from remuda_scheduler.store import StoreView, open_store
from remuda_scheduler.testing.committing import commit_image
from remuda_scheduler.testing.ports import Counters, FirstFit, Grants, Hub, MortalLeadership
from remuda_scheduler.turns.queue import Limits
from remuda_scheduler.turns.turns import Turns

PROJECT = ProjectId("demo")
NETWORK = NetworkId("lan")
IMAGE = ImageId("6b0ff1d4-4f6b-4b41-9a7c-0b54a1f4d8f7")
FAST = Timing(patience=0.15, first_pause=0.01, longest_pause=0.05, look_again=0.02, debts_every=3600.0)


@dataclass(slots=True, kw_only=True)
class Term:
    """One leader with its engine."""

    leadership: MortalLeadership
    inner: Leadership
    engine: Engine
    task: asyncio.Task[None]

    async def kill(self) -> None:
        """No goodbye to anybody: the engine is dropped and its lease revoked."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.inner.resign()


@dataclass(slots=True, kw_only=True)
class Cluster:
    etcd: Etcd
    keys: Keys
    store: StoreView
    agents: FakeHosts
    probes: FakeProbes
    a: HostId
    b: HostId
    c: HostId
    sagas: Mapping[str, Saga[Any]] = field(default_factory=lambda: SAGAS)
    timing: Timing = FAST
    room: int = 100
    limits: Limits = field(default_factory=Limits)
    hub: Hub = field(default_factory=Hub)
    grants: Grants = field(default_factory=Grants)
    controls: ControlHub = field(default_factory=ControlHub)
    counters: Counters = field(default_factory=Counters)
    term: Term | None = None

    # --- leaders ---

    async def lead(self, *, die_after: int | None = None) -> Term:
        """A new leader takes over and begins to work."""
        inner = await Election(self.etcd, self.keys.leader, b"test", 10).campaign()
        mortal = MortalLeadership(inner, die_after)
        leader = LeaderRef(cluster_id=inner.cluster_id, epoch=inner.epoch)
        placement = FirstFit(self.store, list(self.agents.hosts), self.room)
        services = Services(
            etcd=self.etcd,
            keys=self.keys,
            store=self.store,
            leadership=mortal,
            agents=FencedAgents(self.agents, leader, self.store.fenced),
            placement=placement,
            preflight=Preflight(hosts=placement, prober=Prober(self.probes)),
            grants=self.grants,
            turns=Turns(self.store, self.limits),
            progress=self.hub,
            controls=self.controls,
            metrics=self.counters,
            timing=self.timing,
        )
        engine = Engine(services, self.sagas)
        task = asyncio.create_task(engine.run())
        self.term = Term(leadership=mortal, inner=inner, engine=engine, task=task)
        return self.term

    async def close(self) -> None:
        """The present leader is gone."""
        term, self.term = self.term, None
        if term is not None:
            await term.kill()

    async def through_deaths(self, operation: OperationId, *, writes: int = 2) -> int:
        """Executes an operation with leaders that each die after so many writes, until it is done. Returns
        how many died. (With one write each, none would come further than to note that it took over.)
        """
        deaths = 0
        while not await self.until_death(operation, writes=writes):
            deaths += 1
            assert deaths < 60, (await self.operation(operation)).metadata
        return deaths

    async def until_death(self, operation: OperationId, *, writes: int) -> bool:
        """A leader works on the operation and dies after so many writes. Whether it is done by then."""
        term = await self.lead(die_after=writes)
        died = asyncio.create_task(term.leadership.died.wait())
        done = asyncio.create_task(self.ended(operation))
        await asyncio.wait({died, done}, return_when=asyncio.FIRST_COMPLETED)
        for task in (died, done):
            task.cancel()
        await asyncio.gather(died, done, return_exceptions=True)
        await self.close()
        return (await self.operation(operation)).done

    # --- what the api would do ---

    async def put_host(self, host: HostId, name: str, *, pools: Sequence[HostPool] = ()) -> None:
        local = HostPool(name="local", uid=f"local-{name}")
        inventory = HostInventory(
            vcpus=1000,
            memory_mib=1 << 20,
            agent_version="1.0.0",
            physical_networks=["physnet"],
            machine_types=["pc-q35-7.2"],
            migration_address=f"{name}.test",
            migration_transport="tls",
            pools=[local, *pools],
        )
        storage = {pool.name: pool.uid for pool in inventory.pools}
        self.probes.sights[host] = FakeSight(name=name, address=f"192.0.2.{len(name)}", storage=storage)
        await self.etcd.put(self.keys.host(host), HostRecord(id=host, display_name=name).SerializeToString())
        await self.set_host_state(host, Host.STATE_UP, inventory)

    async def set_host_state(
        self, host: HostId, state: Host.State.ValueType, inventory: HostInventory | None = None
    ) -> None:
        known = self.store.host_status(host)
        status = HostStatus(state=state, inventory=inventory or (known.inventory if known else None))
        revision = await self.etcd.put(self.keys.host_status(host), status.SerializeToString())
        await self.store.host_statuses.wait_revision(revision, 5)

    async def launch(
        self, *, host: str = "", address: str = "", name: str = "web", pool: str = ""
    ) -> tuple[InstanceId, OperationId]:
        """Admits CreateInstance."""
        instance = InstanceId(str(uuid.uuid4()))
        interface = NetworkInterface(network=f"networks/{NETWORK}", address=address)
        record = InstanceRecord(
            project=PROJECT,
            id=instance,
            display_name=name,
            flavor="small",
            vcpus=1,
            memory_mib=128,
            disk_bytes=1 << 30,
            image_project=PROJECT,
            image_id=IMAGE,
            manifest_digest="00",
            requested_interfaces=[interface],
            requested_pool=pool,
            intent=Instance.INTENT_RUNNING,
            create_time=now(),
        )
        status = InstanceStatus(state=Instance.STATE_CREATING, project=PROJECT)
        request = CreateInstanceRequest(parent=f"projects/{PROJECT}", host=host)
        also = [
            ops.put(self.keys.instance(PROJECT, instance), record.SerializeToString()),
            ops.put(self.keys.instance_status(instance), status.SerializeToString()),
            ops.put(self.keys.instance_name(PROJECT, name), instance.encode()),
            ops.put(self.keys.image_ref(IMAGE, instance), ImageRef(instance_id=instance).SerializeToString()),
        ]
        operation = await self.admit("CreateInstance", instance, request, also=also)
        return instance, operation

    async def admit(
        self,
        action: str,
        instance: InstanceId,
        request: Message,
        *,
        also: Sequence[ops.Op] = (),
        image: ImageId | None = None,
    ) -> OperationId:
        operation = OperationId(str(uuid.uuid4()))
        claim = Claim(operation_id=operation, action=action)
        result = await self.etcd.txn(
            compare=[ops.absent(self.keys.claim(instance))],
            success=[
                ops.put(self.keys.claim(instance), claim.SerializeToString()),
                self._operation(operation, action, instance, request, image),
                *also,
            ],
        )
        assert result.succeeded, "the instance is busy"
        return operation

    def _operation(
        self,
        operation: OperationId,
        action: str,
        instance: InstanceId,
        request: Message,
        image: ImageId | None = None,
    ) -> ops.Op:
        packed = AnyMessage()
        packed.Pack(request)
        record = OperationRecord(
            id=operation,
            action=action,
            instance_id=instance,
            project=PROJECT,
            request=packed,
            image_id=image or "",
            metadata=OperationMetadata(
                action=action,
                state=OperationMetadata.STATE_PENDING,
                requester="user/alice",
                create_time=now(),
            ),
        )
        return ops.put(self.keys.operation(operation), record.SerializeToString())

    async def cancel(self, operation: OperationId) -> None:
        await self.etcd.put(
            self.keys.cancel(operation), CancelRecord(principal="user/alice").SerializeToString()
        )

    async def supersede_with_delete(self, instance: InstanceId) -> OperationId:
        """Admits DeleteInstance while another operation holds the instance."""
        operation = OperationId(str(uuid.uuid4()))
        seen = await self.etcd.get(self.keys.claim(instance))
        assert seen is not None
        claim = Claim.FromString(seen.value)
        holder = OperationId(claim.operation_id)
        claim.successor_id = operation
        result = await self.etcd.txn(
            compare=[ops.mod_is(self.keys.claim(instance), seen.mod_revision)],
            success=[
                ops.put(self.keys.claim(instance), claim.SerializeToString()),
                ops.put(self.keys.cancel(holder), CancelRecord(principal="user/alice").SerializeToString()),
                self._operation(operation, "DeleteInstance", instance, DeleteInstanceRequest()),
            ],
        )
        assert result.succeeded
        return operation

    # --- looking ---

    async def operation(self, operation: OperationId) -> OperationRecord:
        seen = await self.etcd.get(self.keys.operation(operation))
        assert seen is not None
        return OperationRecord.FromString(seen.value)

    async def ended(self, operation: OperationId) -> OperationRecord:
        last = OperationRecord()

        async def over() -> OperationRecord | None:
            nonlocal last
            last = await self.operation(operation)
            return last if last.done else None

        return await wait_for(over, timeout=15, last_status=lambda: (last.metadata, self.agents.log))

    async def in_state(
        self, operation: OperationId, state: OperationMetadata.State.ValueType
    ) -> OperationRecord:
        async def there() -> OperationRecord | None:
            record = await self.operation(operation)
            return record if record.metadata.state == state else None

        return await wait_for(there, timeout=10)

    async def status(self, instance: InstanceId) -> InstanceStatus:
        seen = await self.etcd.get(self.keys.instance_status(instance))
        assert seen is not None
        return InstanceStatus.FromString(seen.value)

    async def events(self, instance: InstanceId) -> list[str]:
        found = (await self.etcd.range_prefix(self.keys.events(instance))).kvs
        return [EventRecord.FromString(kv.value).event.type for kv in found]

    async def left(self, *prefixes: str) -> list[str]:
        """Keys under the prefixes (short names), without the cluster's prefix."""
        found = []
        for prefix in prefixes:
            page = await self.etcd.range_prefix(f"{self.keys.prefix}{prefix}/")
            found += [kv.key.removeprefix(self.keys.prefix) for kv in page.kvs]
        return found

    async def nothing_is_open(self) -> None:
        assert await self.left("journals", "claims", "cancels", "debts") == []

    async def nothing_is_left(self) -> None:
        """No domain, no directory, no address, no reservation, no open record."""
        await self.nothing_is_open()
        assert await self.left("ports", "macs", "image_refs") == []
        assert [host.id for host in self.agents.hosts.values() if not host.empty] == []

    async def running(self, *, pool: str = "") -> InstanceId:
        """An instance that was launched on host A. Nobody leads afterwards, and the log is empty."""
        instance, operation = await self.launch(
            host=f"hosts/{self.a}", name=f"vm-{uuid.uuid4().hex[:8]}", pool=pool
        )
        sagas, self.sagas = self.sagas, SAGAS
        await self.lead()
        record = await self.ended(operation)
        await self.close()
        assert record.metadata.state == OperationMetadata.STATE_DONE, record
        self.sagas = sagas
        self.agents.log.clear()
        return instance

    async def done(self, operation: OperationId, state: OperationMetadata.State.ValueType) -> OperationRecord:
        """Waits for the end, and asserts which one."""
        record = await self.ended(operation)
        assert record.metadata.state == state, record
        return record

    def domain(self, host: HostId, instance: InstanceId) -> FakeDomain | None:
        return self.agents.hosts[host].domains.get(instance)

    def domain_on(self, host: HostId, instance: InstanceId) -> FakeDomain:
        """The one that has to be there."""
        domain = self.domain(host, instance)
        assert domain is not None, f"{host} has no domain of {instance}"
        return domain

    def directory(self, host: HostId, instance: InstanceId) -> FakeDirectory | None:
        return self.agents.hosts[host].directories.get(instance)


@asynccontextmanager
async def open_cluster(etcd: Etcd, keys: Keys) -> AsyncIterator[Cluster]:
    """Hosts A and B share a storage pool, C does not; all have a local one. Nobody leads yet."""
    a, b, c = (HostId(str(uuid.uuid4())) for _ in range(3))
    network = Network(physical_network="physnet", cidr="10.78.0.0/24", gateway="10.78.0.1")
    record = NetworkRecord(id=NETWORK, network=network)
    await etcd.put(keys.network(NETWORK), record.SerializeToString())
    async with open_store(etcd, keys) as store:
        agents = FakeHosts(a, b, c)
        made = Cluster(
            etcd=etcd, keys=keys, store=store, agents=agents, probes=FakeProbes(agents), a=a, b=b, c=c
        )
        for agent in agents.hosts.values():
            agent.snapshots.commit = partial(commit_image, etcd, keys)
        shared = HostPool(name="shared", uid="nfs-1", shared=True)
        for host, name in ((a, "alpha"), (b, "beta"), (c, "gamma")):
            await made.put_host(host, name, pools=[shared] if host != c else [])
        try:
            yield made
        finally:
            await made.close()
