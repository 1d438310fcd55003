"""The uploader's own part: what it encodes, cuts and counts, against a store that is made for it."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import grpc
import pytest
from remuda.image.v1 import chunk_pb2
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import ImageId
from remuda_core.images import replicas
from remuda_core.images.chunks import CHUNK_BYTES, HOLE, Digest, Encoding, Stored, decode, digest_of
from remuda_core.images.upload import FIND_AT_ONCE, WRITE_AT_ONCE, ChunkUploader

IMAGE = ImageId("8f4b5f2e-8f5c-4a6f-9d3e-0f1e2d3c4b5a")
GRANT = chunk_pb2.SignedGrant(grant=b"grant", signature=b"signature")


def failure(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details="made up")


class Store:
    """A replica that takes everything, after the failures it is given."""

    def __init__(self, *failures: grpc.StatusCode) -> None:
        self.failures = list(failures)
        self.questions: list[int] = []
        self.calls: list[list[chunk_pb2.WriteChunksRequest]] = []

    async def FindChunks(
        self, request: chunk_pb2.FindChunksRequest, *, timeout: float
    ) -> chunk_pb2.FindChunksResponse:
        if self.failures:
            raise failure(self.failures.pop(0))
        self.questions.append(len(request.digests))
        return chunk_pb2.FindChunksResponse(lacking=request.digests[::2])

    def WriteChunks(self) -> "Call":
        frames: list[chunk_pb2.WriteChunksRequest] = []
        self.calls.append(frames)
        return Call(frames, self.failures.pop(0) if self.failures else None)


class Call:
    def __init__(self, frames: list[chunk_pb2.WriteChunksRequest], code: grpc.StatusCode | None) -> None:
        self._frames = frames
        self._code = code

    async def write(self, frame: chunk_pb2.WriteChunksRequest) -> None:
        if self._code is not None and self._frames:
            raise asyncio.InvalidStateError
        self._frames.append(frame)

    async def done_writing(self) -> None:
        pass

    def add_done_callback(self, callback: Callable[["Call"], None]) -> None:
        """Never called: this call's own answer is always the real one."""

    def __await__(self) -> Any:
        return self._answer().__await__()

    async def _answer(self) -> chunk_pb2.WriteChunksResponse:
        if self._code is not None:
            raise failure(self._code)
        return chunk_pb2.WriteChunksResponse(
            chunks=sum(frame.last for frame in self._frames),
            stored_bytes=sum(len(frame.data) for frame in self._frames),
        )

    def cancel(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "_PAUSE_SECONDS", 0.0)


def uploader_to(*stores: Store, tries: int = 3) -> ChunkUploader:
    return ChunkUploader(cast("Sequence[Any]", stores), image_id=IMAGE, grant=GRANT, tries=tries)


def chunks_of(count: int, make: Callable[[int], bytes]) -> list[tuple[Digest, bytes]]:
    return [(digest_of(data), data) for data in map(make, range(count))]


async def test_questions_are_cut_and_zeros_and_doubles_are_not_asked_for() -> None:
    store = Store()
    digests = [digest for digest, _ in chunks_of(FIND_AT_ONCE + 3, lambda n: n.to_bytes(4))]
    lacking = await uploader_to(store).lacking([HOLE, *digests, *digests[:9], HOLE])
    assert store.questions == [FIND_AT_ONCE, 3]
    assert lacking == {*digests[:FIND_AT_ONCE:2], *digests[FIND_AT_ONCE::2]}


async def test_chunks_travel_encoded_in_frames_and_calls_of_bounded_size() -> None:
    store = Store()
    noise = digest_of(b"").ljust(CHUNK_BYTES, b"\1")
    chunks = chunks_of(WRITE_AT_ONCE + 1, lambda n: bytes([n + 1]) * 1000 + noise)
    chunks = [(digest_of(data[:CHUNK_BYTES]), data[:CHUNK_BYTES]) for _, data in chunks]
    written = await uploader_to(store).write(chunks)
    assert [sum(frame.last for frame in call) for call in store.calls] == [WRITE_AT_ONCE, 1]
    for frames, sent in zip(store.calls, (chunks[:WRITE_AT_ONCE], chunks[WRITE_AT_ONCE:]), strict=True):
        assert [frame.image_id for frame in frames] == [IMAGE, *[""] * (len(frames) - 1)]
        assert [frame.HasField("grant") for frame in frames] == [True, *[False] * (len(frames) - 1)]
        for frame, (digest, data) in zip(frames, sent, strict=True):
            stored = Stored(encoding=Encoding(frame.encoding), data=frame.data)
            assert decode(stored, digest, frame.plain_bytes) == data
    total = sum(len(frame.data) for call in store.calls for frame in call)
    assert written == (total, total)


async def test_a_passing_error_is_met_at_the_next_replica_and_what_was_sent_twice_counts_twice() -> None:
    first, second = Store(grpc.StatusCode.UNAVAILABLE), Store()
    chunks = chunks_of(2, lambda n: bytes([n + 1]) * 3)
    written = await uploader_to(first, second).write(chunks)
    assert [len(call) for call in first.calls] == [1]
    assert [len(call) for call in second.calls] == [2]
    assert written.stored_bytes == 6
    assert written.sent_bytes == 9


@pytest.mark.parametrize(
    ("code", "reason", "calls"),
    [
        (grpc.StatusCode.UNAVAILABLE, Reason.STORE_UNAVAILABLE, 3),
        (grpc.StatusCode.DATA_LOSS, Reason.DIGEST_MISMATCH, 3),
        (grpc.StatusCode.PERMISSION_DENIED, Reason.PERMISSION_DENIED, 1),
        (grpc.StatusCode.INVALID_ARGUMENT, Reason.INVALID_ARGUMENT, 1),
    ],
)
async def test_only_errors_that_may_pass_are_tried_again_and_not_forever(
    code: grpc.StatusCode, reason: Reason, calls: int
) -> None:
    store = Store(*[code] * 9)
    with pytest.raises(RemudaError) as caught:
        await uploader_to(store).write(chunks_of(2, lambda n: bytes([n + 1])))
    assert caught.value.reason is reason
    assert len(store.calls) == calls


async def test_a_store_that_takes_nothing_is_left_after_the_stall_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def forever(self: Call, frame: chunk_pb2.WriteChunksRequest) -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(Call, "write", forever)
    uploader = ChunkUploader(
        cast("Sequence[Any]", [Store()]), image_id=IMAGE, grant=GRANT, tries=2, stall_seconds=0.01
    )
    with pytest.raises(RemudaError, match="nothing moved for too long") as caught:
        await uploader.write(chunks_of(1, lambda _: b"x"))
    assert caught.value.reason is Reason.STORE_UNAVAILABLE


def test_an_uploader_without_a_store_is_refused() -> None:
    with pytest.raises(ValueError, match="no image store"):
        uploader_to()
