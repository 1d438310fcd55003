"""The leader has damaged chunks repaired: whom it asks, in which order, how often, and when it stops."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from remuda.agent.v1.common_pb2 import LeaderRef
from remuda.compute.v1.host_pb2 import Host
from remuda.image.v1.image_pb2 import Image
from remuda.store.v1.host_pb2 import HostStatus
from remuda.store.v1.image_pb2 import DamageRecord, ImageRecord
from remuda.store.v1.instance_pb2 import InstanceRecord, InstanceStatus
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId, ImageId, InstanceId, ProjectId
from remuda_core.telemetry.metrics import Metrics
from remuda_core.testing.waiting import wait_for
from remuda_scheduler.engine.fencing import FencedAgents
from remuda_scheduler.repairing.backoff import Backoff
from remuda_scheduler.repairing.service import Repairer
from remuda_scheduler.testing.cluster import Cluster
from remuda_scheduler.testing.ports import Grants

WAIT_SECONDS = 60.0
DIGESTS = [f"{number:02x}" * 32 for number in range(1, 4)]
MANIFEST = "ee" * 32


class Damage:
    """An image, its damaged chunks, and hosts that may have them."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.image = ImageId(str(uuid.uuid4()))
        self.metrics = Metrics()
        self.sound: dict[HostId, set[str]] = {}
        cluster.agents.offered = self.offered

    async def offered(self, host: HostId, _: ImageId, digests: Sequence[bytes]) -> int:
        """As host and image store do it together."""
        repaired = {one.hex() for one in digests} & self.sound.get(host, set())
        for digest in repaired:
            await self.cluster.etcd.delete(self.cluster.keys.image_damage(digest))
        return len(repaired)

    async def record(self, *digests: str) -> None:
        keys, etcd = self.cluster.keys, self.cluster.etcd
        for host in (self.cluster.a, self.cluster.b, self.cluster.c):
            await etcd.put(keys.host_status(host), HostStatus(state=Host.STATE_UP).SerializeToString())
        image = ImageRecord(id=self.image, image=Image(state=Image.STATE_ACTIVE, manifest_digest=MANIFEST))
        await etcd.put(keys.image(self.image), image.SerializeToString())
        for digest in digests:
            record = DamageRecord(image_ids=[self.image])
            await etcd.put(keys.image_damage(digest), record.SerializeToString())

    async def guest_on(self, host: HostId) -> None:
        keys, etcd, instance = self.cluster.keys, self.cluster.etcd, InstanceId(str(uuid.uuid4()))
        record = InstanceRecord(id=instance, image_id=self.image, manifest_digest=MANIFEST)
        await etcd.put(keys.instance(ProjectId("demo"), instance), record.SerializeToString())
        status = InstanceStatus(project="demo", host_id=host)
        await etcd.put(keys.instance_status(instance), status.SerializeToString())

    @asynccontextmanager
    async def leading(self, epoch: int = 1) -> AsyncIterator[Repairer]:
        store = self.cluster.store
        repairer = Repairer(
            etcd=self.cluster.etcd,
            store=store,
            agents=FencedAgents(self.cluster.agents, LeaderRef(epoch=epoch), store.fenced),
            grants=Grants(),
            metrics=self.metrics,
            backoff=Backoff(first_seconds=0.1, longest_seconds=0.2),
        )
        task = asyncio.create_task(repairer.run())
        try:
            yield repairer
            assert not task.done(), task.exception()
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def until_sound(self, repairer: Repairer) -> None:
        def status() -> str:
            return f"{repairer.damaged} are damaged, asked: {self.asked()}"

        await wait_for(lambda: not repairer.damaged, timeout=WAIT_SECONDS, last_status=status)

    def asked(self) -> list[HostId]:
        return [host for host, _, _, _ in self.cluster.agents.offers]


async def test_a_host_with_a_guest_of_the_image_is_asked_first_and_nobody_else_when_it_helps(
    cluster: Cluster,
) -> None:
    damage = Damage(cluster)
    damage.sound[cluster.c] = set(DIGESTS)
    await damage.guest_on(cluster.c)
    await damage.record(*DIGESTS)
    await wait_for(lambda: len(cluster.store.damage) == 3, timeout=WAIT_SECONDS)
    async with damage.leading() as repairer:
        await damage.until_sound(repairer)
    assert set(damage.asked()) == {cluster.c}
    _, image, manifest, _ = cluster.agents.offers[0]
    assert (image, manifest) == (damage.image, MANIFEST)
    assert {one.hex() for _, _, _, digests in cluster.agents.offers for one in digests} == set(DIGESTS)
    assert damage.metrics.value("remuda_image_chunks_repaired_total") == 3


async def test_what_one_host_has_not_another_one_is_asked_for(cluster: Cluster) -> None:
    damage = Damage(cluster)
    damage.sound = {cluster.a: {DIGESTS[0]}, cluster.b: {DIGESTS[1]}, cluster.c: {DIGESTS[2]}}
    async with damage.leading() as repairer:
        await damage.record(*DIGESTS)
        await wait_for(lambda: repairer.damaged, timeout=WAIT_SECONDS)
        await damage.until_sound(repairer)
    assert set(damage.asked()) == {cluster.a, cluster.b, cluster.c}


async def test_a_chunk_that_nobody_has_is_asked_for_again_until_somebody_has_it(cluster: Cluster) -> None:
    damage = Damage(cluster)
    async with damage.leading() as repairer:
        await damage.record(DIGESTS[0])
        await wait_for(lambda: len(damage.asked()) > 6, timeout=WAIT_SECONDS)
        assert repairer.damaged == 1
        damage.sound[cluster.b] = {DIGESTS[0]}
        await damage.until_sound(repairer)


async def test_hosts_that_are_silent_or_refuse_do_not_stop_it(cluster: Cluster) -> None:
    damage = Damage(cluster)

    async def offered(host: HostId, image: ImageId, digests: Sequence[bytes]) -> int:
        if host == cluster.a:
            raise RemudaError(Reason.HOST_UNREACHABLE, "silence")
        if host == cluster.b:
            raise RemudaError(Reason.GRANT_REFUSED, "no")
        return await damage.offered(host, image, digests)

    cluster.agents.offered = offered
    damage.sound[cluster.c] = {DIGESTS[0]}
    async with damage.leading() as repairer:
        await damage.record(DIGESTS[0])
        await wait_for(lambda: repairer.damaged, timeout=WAIT_SECONDS)
        await damage.until_sound(repairer)


async def test_the_next_leader_goes_on_with_what_is_left(cluster: Cluster) -> None:
    damage = Damage(cluster)
    async with damage.leading(1):
        await damage.record(DIGESTS[0])
        await wait_for(damage.asked, timeout=WAIT_SECONDS)
    damage.sound[cluster.a] = {DIGESTS[0]}
    async with damage.leading(2) as repairer:
        await damage.until_sound(repairer)


async def test_an_image_that_is_not_active_is_nobodys_to_repair(cluster: Cluster) -> None:
    damage = Damage(cluster)
    other = Damage(cluster)
    await damage.record(DIGESTS[0])
    deleting = ImageRecord(id=damage.image, image=Image(state=Image.STATE_DELETING, manifest_digest=MANIFEST))
    await cluster.etcd.put(cluster.keys.image(damage.image), deleting.SerializeToString())
    await wait_for(lambda: len(cluster.store.damage) == 1, timeout=WAIT_SECONDS)
    other.sound[cluster.a] = {DIGESTS[1]}
    async with other.leading() as repairer:
        await other.record(DIGESTS[1])
        await wait_for(
            lambda: (
                cluster.store.damage.get(cluster.keys.image_damage(DIGESTS[1])) is None
                and other.metrics.value("remuda_image_chunks_repaired_total")
            ),
            timeout=WAIT_SECONDS,
        )
        assert repairer.damaged == 1
    assert all(image == other.image for _, image, _, _ in cluster.agents.offers)
