"""Images from the client's side: gateway and image store together, sharing and quotas to the last byte."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest_asyncio
from google.protobuf.field_mask_pb2 import FieldMask
from remuda.compute.v1 import quota_pb2
from remuda.image.v1 import image_pb2
from remuda_core.errors import Reason
from remuda_core.testing.waiting import wait_for
from remuda_image_store.testing import Cloud, noise

from tests.integration.api.conftest import Client, Cluster, refusal

Image = image_pb2.Image
MIB = 1 << 20
WAIT_SECONDS = 120.0
QUOTA = "projects/demo/quota"


@dataclass(frozen=True, kw_only=True)
class Used:
    images: int
    virtual: int
    stored: int


@dataclass(frozen=True, kw_only=True)
class Users:
    """At the gateway that knows the store."""

    alice: Client
    bob: Client
    eve: Client
    admin: Client

    async def upload(self, name: str, disk: bytes) -> Image:
        image = Image(display_name=name, format=Image.FORMAT_RAW, file_bytes=len(disk))
        made = await self.alice.images.CreateImage(
            image_pb2.CreateImageRequest(parent="projects/demo", image=image)
        )
        return await self.send(made, disk)

    async def send(self, made: Image, disk: bytes) -> Image:
        async def frames() -> AsyncIterator[image_pb2.UploadImageRequest]:
            for at in range(0, len(disk), MIB):
                data = disk[at : at + MIB]
                yield image_pb2.UploadImageRequest(
                    name="" if at else made.name, offset=at, data=data, finish=at + len(data) == len(disk)
                )

        return (await self.alice.images.UploadImage(frames())).image

    async def limit(self, **limits: int) -> None:
        quota = quota_pb2.Quota(name=QUOTA, **limits)  # type: ignore[arg-type]
        mask = FieldMask(paths=list(limits))
        await self.admin.quotas.UpdateQuota(quota_pb2.UpdateQuotaRequest(quota=quota, update_mask=mask))

    async def used(self) -> Used:
        usage = (await self.alice.quotas.GetQuota(quota_pb2.GetQuotaRequest(name=QUOTA))).usage
        return Used(images=usage.images, virtual=usage.image_virtual_bytes, stored=usage.image_stored_bytes)

    async def delete(self, image: Image) -> None:
        await self.alice.images.DeleteImage(image_pb2.DeleteImageRequest(name=image.name))

    async def nothing_is_charged(self) -> None:
        async def empty() -> bool:
            return await self.used() == Used(images=0, virtual=0, stored=0)

        await wait_for(empty, timeout=WAIT_SECONDS)


@pytest_asyncio.fixture
async def users(cluster: Cluster, cloud: Cloud) -> Users:
    await cluster.start_gateway(image_stores=(await cloud.serve(),))
    return Users(
        alice=cluster.client("user/alice;project:demo", at=1),
        bob=cluster.client("user/bob;project:other", at=1),
        eve=cluster.client("user/eve;project:eve", at=1),
        admin=cluster.client("user/root;admin", at=1),
    )


async def received(client: Client, name: str) -> bytes:
    disk = bytearray()
    async for frame in client.images.DownloadImage(image_pb2.DownloadImageRequest(name=name)):
        disk += frame.data or bytes(frame.zero_bytes)
    return bytes(disk)


async def test_a_shared_image_comes_out_for_those_that_it_is_shared_with_bit_for_bit(users: Users) -> None:
    disk = noise(5, 5 * MIB + 512) + bytes(3 * MIB)
    image = await users.upload("golden", disk)
    for stranger in (users.bob, users.eve):
        assert (await refusal(received(stranger, image.name))).reason is Reason.IMAGE_NOT_FOUND
    changed = Image(name=image.name, visibility=Image.VISIBILITY_SHARED, shared_with=["projects/other"])
    call = users.alice.images.UpdateImage(
        image_pb2.UpdateImageRequest(
            image=changed, update_mask=FieldMask(paths=["visibility", "shared_with"])
        )
    )
    await call
    revision = str(dict(await call.trailing_metadata())["remuda-revision"])
    seen = await users.bob.images.GetImage(
        image_pb2.GetImageRequest(name=image.name), metadata=(("remuda-min-revision", revision),)
    )
    assert seen.visibility == Image.VISIBILITY_SHARED
    assert await received(users.bob, "projects/demo/images/golden") == disk
    assert (await refusal(received(users.eve, image.name))).reason is Reason.IMAGE_NOT_FOUND


async def test_usage_is_what_guests_see_and_what_is_stored_and_goes_back_to_nothing(users: Users) -> None:
    disk = noise(6, 4 * MIB) + bytes(4 * MIB)
    image = await users.upload("first", disk)
    used = await users.used()
    assert (used.images, used.virtual, used.stored) == (1, len(disk), image.stored_bytes)
    assert 4 * MIB <= image.stored_bytes <= 4 * MIB + 4096, "zeros have no bytes"
    await users.delete(image)
    await users.nothing_is_charged()


async def test_an_image_that_never_had_bytes_gives_its_charge_back(users: Users) -> None:
    image = Image(display_name="never", format=Image.FORMAT_RAW, file_bytes=MIB)
    made = await users.alice.images.CreateImage(
        image_pb2.CreateImageRequest(parent="projects/demo", image=image)
    )
    assert await users.used() == Used(images=1, virtual=MIB, stored=0)
    await users.delete(made)
    await users.nothing_is_charged()


async def test_an_upload_beyond_the_quota_as_stored_is_refused_and_leaves_room_for_another(
    users: Users,
) -> None:
    await users.limit(image_stored_bytes=5 * MIB)
    await users.upload("first", noise(7, 4 * MIB))
    before = await users.used()
    made = await users.alice.images.CreateImage(
        image_pb2.CreateImageRequest(
            parent="projects/demo",
            image=Image(display_name="second", format=Image.FORMAT_RAW, file_bytes=4 * MIB),
        )
    )
    error = await refusal(users.send(made, noise(8, 4 * MIB)))
    assert (error.reason, error.metadata["limit"]) == (Reason.QUOTA_EXCEEDED, "image_stored_bytes")
    assert (await users.used()).stored == before.stored
    await users.delete(made)
    await users.limit(image_stored_bytes=9 * MIB)
    assert (await users.upload("third", noise(9, 4 * MIB))).state == Image.STATE_ACTIVE
