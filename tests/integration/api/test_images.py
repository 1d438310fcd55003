"""Images: records at the gateway, bytes through to a store."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest_asyncio
from remuda.image.v1 import image_pb2 as pb
from remuda.image.v1.image_pb2_grpc import ImageServiceServicer, add_ImageServiceServicer_to_server
from remuda_core.auth.caller import Kind
from remuda_core.errors import Reason, RemudaError
from remuda_core.rpc.context import caller
from remuda_core.rpc.server import Service, ServiceServer
from remuda_core.telemetry.metrics import Metrics

from tests.integration.api.conftest import Client, Cluster, Pieces, refusal

MIB = 1 << 20


class Store(ImageServiceServicer):
    """A store that keeps nothing: it counts what it is sent, and sends what it is told to."""

    def __init__(self) -> None:
        self.received = 0
        self.names: list[str] = []
        self.sent = 0
        self.frames = 3
        self.refusal: RemudaError | None = None
        self.downloads: list[pb.DownloadImageRequest] = []
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def GetUpload(self, request: pb.GetUploadRequest, context: object) -> pb.Upload:
        self._check(request.name)
        return pb.Upload(name=request.name, committed_bytes=self.received)

    async def UploadImage(
        self, request_iterator: AsyncIterator[pb.UploadImageRequest], context: object
    ) -> pb.UploadImageResponse:
        async for frame in request_iterator:
            if frame.name:
                self._check(frame.name)
            self.received += len(frame.data)
            await self.go_on.wait()
        return pb.UploadImageResponse(committed_bytes=self.received)

    async def DownloadImage(
        self, request: pb.DownloadImageRequest, context: object
    ) -> AsyncIterator[pb.DownloadImageResponse]:
        self._check(request.name)
        self.downloads.append(request)
        for number in range(self.frames):
            self.sent += 1
            yield pb.DownloadImageResponse(offset=request.offset + number * MIB, data=bytes(MIB))

    async def CreateImage(self, request: pb.CreateImageRequest, context: object) -> pb.Image:
        raise NotImplementedError

    async def GetImage(self, request: pb.GetImageRequest, context: object) -> pb.Image:
        raise NotImplementedError

    async def ListImages(self, request: pb.ListImagesRequest, context: object) -> pb.ListImagesResponse:
        raise NotImplementedError

    async def UpdateImage(self, request: pb.UpdateImageRequest, context: object) -> pb.Image:
        raise NotImplementedError

    async def DeleteImage(self, request: pb.DeleteImageRequest, context: object) -> "pb.Image":  # type: ignore[override]
        raise NotImplementedError

    def _check(self, name: str) -> None:
        if self.refusal is not None:
            raise self.refusal
        assert caller().kind is Kind.SERVICE
        self.names.append(name)


class Stores:
    """Two stores, and a gateway that knows them and one that does not exist."""

    def __init__(self, stores: list[Store], client: Client) -> None:
        self.first, self.second = stores
        self.client = client


@pytest_asyncio.fixture
async def stores(cluster: Cluster) -> AsyncIterator[Stores]:
    async with AsyncExitStack() as stack:
        found, endpoints = [], ["127.0.0.1:1"]
        for _ in range(2):
            store = Store()
            service = Service(add_ImageServiceServicer_to_server, store)
            server = await stack.enter_async_context(
                ServiceServer(
                    listen="127.0.0.1:0", services=[service], tls=None, metrics=Metrics(), drain_seconds=0
                )
            )
            found.append(store)
            endpoints.append(f"127.0.0.1:{server.port}")
        await cluster.start_gateway(image_stores=tuple(endpoints))
        yield Stores(found, cluster.client("user/alice;project:demo", at=1))


def image_request(**changes: object) -> pb.CreateImageRequest:
    fields: dict[str, object] = {"display_name": "disk", "format": pb.Image.FORMAT_RAW, "file_bytes": 3 * MIB}
    return pb.CreateImageRequest(parent="projects/demo", image=pb.Image(**{**fields, **changes}))  # type: ignore[arg-type]


async def test_an_image_is_made_read_and_marked_for_removal(
    cluster: Cluster, alice: Client, bob: Client
) -> None:
    request = image_request(virtual_bytes=5, state=pb.Image.STATE_ACTIVE)
    request.request_id = str(uuid.uuid4())
    made = await alice.images.CreateImage(request)
    assert (made.state, made.virtual_bytes) == (pb.Image.STATE_UPLOADING, 0)
    assert await alice.images.CreateImage(request) == made
    by_name = pb.GetImageRequest(name="projects/demo/images/disk")
    assert await alice.images.GetImage(by_name) == made
    assert (await refusal(alice.images.CreateImage(image_request()))).reason is Reason.ALREADY_EXISTS
    assert (await refusal(bob.images.GetImage(by_name))).reason is Reason.IMAGE_NOT_FOUND
    foreign = pb.GetImageRequest(name=f"projects/other/images/{made.uid}")
    assert (await refusal(bob.images.GetImage(foreign))).reason is Reason.IMAGE_NOT_FOUND
    delete = pb.DeleteImageRequest(name=made.name, etag="1")
    assert (await refusal(alice.images.DeleteImage(delete))).reason is Reason.ETAG_MISMATCH
    delete.etag = ""
    call = alice.images.DeleteImage(delete)
    await call
    revision = str(dict(await call.trailing_metadata())["remuda-revision"])
    found = await alice.images.GetImage(by_name, metadata=(("remuda-min-revision", revision),))
    assert found.state == pb.Image.STATE_DELETING
    await alice.images.DeleteImage(delete)


async def test_an_image_that_an_instance_is_based_on_stays(
    cluster: Cluster, alice: Client, pieces: Pieces
) -> None:
    await alice.instances.CreateInstance(pieces.request("web"))
    error = await refusal(alice.images.DeleteImage(pb.DeleteImageRequest(name=pieces.image)))
    assert error.reason is Reason.IMAGE_IN_USE


async def test_a_launch_and_the_removal_of_its_image_exclude_each_other(
    cluster: Cluster, alice: Client, pieces: Pieces
) -> None:
    """Whichever commits first, there is never an instance on an image that is being removed."""
    for number in range(6):
        image = await cluster.add_image(name=f"img-{number}")
        answers = await asyncio.gather(
            alice.instances.CreateInstance(pieces.request(f"i-{number}", image=image)),
            alice.images.DeleteImage(pb.DeleteImageRequest(name=image)),
            return_exceptions=True,
        )
        assert sum(not isinstance(answer, BaseException) for answer in answers) == 1


async def test_an_upload_goes_frame_by_frame_to_the_first_store_that_answers(stores: Stores) -> None:
    made = await stores.client.images.CreateImage(image_request())

    async def frames() -> AsyncIterator[pb.UploadImageRequest]:
        yield pb.UploadImageRequest(name="projects/demo/images/disk", data=bytes(MIB))
        yield pb.UploadImageRequest(offset=MIB, data=bytes(MIB))
        yield pb.UploadImageRequest(offset=2 * MIB, data=bytes(MIB), finish=True)

    answer = await stores.client.images.UploadImage(frames())
    assert answer.committed_bytes == 3 * MIB
    assert stores.first.names == [made.name]
    upload = await stores.client.images.GetUpload(pb.GetUploadRequest(name=made.name))
    assert upload.committed_bytes == 3 * MIB


async def test_an_upload_does_not_run_ahead_of_a_slow_store(stores: Stores) -> None:
    made = await stores.client.images.CreateImage(image_request())
    stores.first.go_on.clear()
    produced = 0

    async def frames() -> AsyncIterator[pb.UploadImageRequest]:
        nonlocal produced
        for number in range(64):
            produced += 1
            name = made.name if number == 0 else ""
            yield pb.UploadImageRequest(name=name, offset=number * MIB, data=bytes(MIB))

    call = asyncio.ensure_future(upload(stores.client, frames()))
    before = -1
    # It stands still when nothing has been taken for half a second.
    while produced != before:
        before = produced
        await asyncio.sleep(0.5)
    assert produced < 32
    stores.first.go_on.set()
    assert (await call).committed_bytes == 64 * MIB


async def upload(client: Client, frames: AsyncIterator[pb.UploadImageRequest]) -> pb.UploadImageResponse:
    return await client.images.UploadImage(frames)


async def test_an_upload_without_frames_and_of_a_foreign_image_is_refused(
    cluster: Cluster, stores: Stores
) -> None:
    async def nothing() -> AsyncIterator[pb.UploadImageRequest]:
        return
        yield

    error = await refusal(upload(stores.client, nothing()))
    assert error.reason is Reason.INVALID_ARGUMENT

    async def foreign() -> AsyncIterator[pb.UploadImageRequest]:
        yield pb.UploadImageRequest(name="projects/other/images/disk", data=b"x")

    assert (await refusal(upload(stores.client, foreign()))).reason is Reason.PERMISSION_DENIED
    assert stores.first.received == 0


async def test_a_download_moves_to_the_next_store_only_before_the_first_byte(
    cluster: Cluster, stores: Stores
) -> None:
    image = await cluster.add_image(name="big")
    stores.first.refusal = RemudaError(Reason.SHUTTING_DOWN, "going")
    request = pb.DownloadImageRequest(name=image, offset=7)
    frames = [frame async for frame in stores.client.images.DownloadImage(request)]
    assert [frame.offset for frame in frames] == [7, 7 + MIB, 7 + 2 * MIB]
    assert stores.second.sent == 3
    stores.second.refusal = RemudaError(Reason.IMAGE_NOT_ACTIVE, "not yet")
    error = await refusal(read_all(stores.client, request))
    assert error.reason is Reason.IMAGE_NOT_ACTIVE
    stores.second.refusal = stores.first.refusal
    error = await refusal(read_all(stores.client, request))
    assert error.reason is Reason.STORE_UNAVAILABLE


async def test_a_download_reaches_the_store_with_format_and_offset_and_the_full_name(
    cluster: Cluster, stores: Stores
) -> None:
    image = await cluster.add_image(name="big")
    asked = pb.DownloadImageRequest(name="projects/demo/images/big", format=pb.Image.FORMAT_QCOW2, offset=MIB)
    assert await read_all(stores.client, asked) == 3 * MIB
    asked.name = image
    assert stores.first.downloads == [asked]


async def read_all(client: Client, request: pb.DownloadImageRequest) -> int:
    return sum([len(frame.data) async for frame in client.images.DownloadImage(request)])


async def test_without_any_store_bytes_are_unavailable_and_records_are_not(
    cluster: Cluster, alice: Client
) -> None:
    made = await alice.images.CreateImage(image_request())
    request = pb.GetUploadRequest(name=made.name)
    assert (await refusal(alice.images.GetUpload(request))).reason is Reason.STORE_UNAVAILABLE


async def test_a_frame_that_is_too_large_is_refused_with_its_field_and_what_came_before_is_kept(
    stores: Stores,
) -> None:
    made = await stores.client.images.CreateImage(image_request())

    async def later() -> AsyncIterator[pb.UploadImageRequest]:
        yield pb.UploadImageRequest(name=made.name, data=bytes(MIB))
        yield pb.UploadImageRequest(offset=MIB, data=bytes(2 * MIB + 1), finish=True)

    async def at_once() -> AsyncIterator[pb.UploadImageRequest]:
        yield pb.UploadImageRequest(name=made.name, data=bytes(2 * MIB + 1))

    async with asyncio.timeout(10):
        for frames in (later(), at_once()):
            error = await refusal(upload(stores.client, frames))
            assert error.reason is Reason.INVALID_ARGUMENT
            assert error.violations[0].subject == "data"
    assert stores.first.received == MIB


async def test_a_message_beyond_grpcs_limit_is_refused_as_too_large(stores: Stores) -> None:
    made = await stores.client.images.CreateImage(image_request())

    async def frames() -> AsyncIterator[pb.UploadImageRequest]:
        yield pb.UploadImageRequest(name=made.name, data=bytes(MIB))
        yield pb.UploadImageRequest(offset=MIB, data=bytes((64 << 20) + 1))

    async with asyncio.timeout(20):
        error = await refusal(upload(stores.client, frames()))
    assert error.reason is Reason.REQUEST_TOO_LARGE


async def test_sizes_that_no_disk_and_no_guest_has_are_refused(alice: Client) -> None:
    for changes in ({"min_disk_gib": 1 << 40}, {"min_memory_mib": 1 << 40}, {"file_bytes": 1 << 60}):
        error = await refusal(alice.images.CreateImage(image_request(**changes)))
        assert error.reason is Reason.INVALID_ARGUMENT
        assert error.violations[0].subject == f"image.{next(iter(changes))}"
