"""The image stores behind the gateway: which one is asked, and when the next one is."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc
from remuda.image.v1 import image_pb2 as pb
from remuda.image.v1.image_pb2_grpc import ImageServiceStub
from remuda_core.errors import Reason, RemudaError
from remuda_core.rpc.context import outgoing, timeout_for
from remuda_core.rpc.first_status import FirstStatus
from remuda_core.rpc.status import from_rpc_error

if TYPE_CHECKING:
    from remuda.image.v1.image_pb2_grpc import ImageServiceAsyncStub

_log = logging.getLogger(__name__)

OpenChannel = Callable[[str], grpc.aio.Channel]

_CONNECT_SECONDS = 3.0
_CALL_SECONDS = 20.0
# No limit of the gateway's own on bytes that flow: the caller's deadline counts.
_STREAM_SECONDS = 24 * 3600.0
_UPLOAD, _DOWNLOAD = (
    "/remuda.image.v1.ImageService/UploadImage",
    "/remuda.image.v1.ImageService/DownloadImage",
)
FORWARDED = frozenset({_UPLOAD, _DOWNLOAD})
"""Their frames are passed on as they came: to parse and to serialize each once more here doubles the cost."""
_AWAY = frozenset({Reason.UNAVAILABLE, Reason.SHUTTING_DOWN})


class ImageStores:
    """All stores share one backend, so any of them will do. Flow control is gRPC's: a frame is read from
    one side only when the other side has taken the one before."""

    def __init__(self, endpoints: Sequence[str], open_channel: OpenChannel) -> None:
        self._endpoints = list(endpoints)
        self._open_channel = open_channel
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def close(self) -> None:
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()

    async def get_upload(self, request: pb.GetUploadRequest) -> pb.Upload:
        """Raises RemudaError STORE_UNAVAILABLE when no store answers."""
        async for endpoint, stub in self._reachable():
            try:
                return await stub.GetUpload(request, **outgoing(_CALL_SECONDS))
            except grpc.aio.AioRpcError as error:
                self._away_or_raise(endpoint, error)
        raise _none_left()

    async def download(self, request: pb.DownloadImageRequest) -> AsyncIterator[bytes]:
        """Serialized frames. Goes on at another store as long as nothing has been sent to the client."""
        async for endpoint, _ in self._reachable():
            begun = False
            download: grpc.aio.UnaryStreamMultiCallable[Any, bytes] = self._channel(endpoint).unary_stream(
                _DOWNLOAD, request_serializer=pb.DownloadImageRequest.SerializeToString
            )
            call = download(request, **outgoing(_STREAM_SECONDS))
            try:
                async for frame in call:
                    begun = True
                    yield frame
            except grpc.aio.AioRpcError as error:
                if begun:
                    raise from_rpc_error(error) from error
                self._away_or_raise(endpoint, error)
            else:
                return
            finally:
                call.cancel()
        raise _none_left()

    async def upload(
        self, first: pb.UploadImageRequest, rest: AsyncIterator[bytes]
    ) -> pb.UploadImageResponse:
        """A store is chosen once; a client whose stream breaks asks GetUpload where to go on.

        `rest`: serialized. Raises what `rest` raises; what came before is then kept by the store.
        """
        async for endpoint, _ in self._reachable():
            frames = _Frames(first, rest)
            upload: grpc.aio.StreamUnaryMultiCallable[bytes, Any] = self._channel(endpoint).stream_unary(
                _UPLOAD, response_deserializer=pb.UploadImageResponse.FromString
            )
            call = upload(frames.sent(), **outgoing(_STREAM_SECONDS))
            refusal = FirstStatus(call)
            try:
                answer: pb.UploadImageResponse = await call
            except grpc.aio.AioRpcError as error:
                raise frames.failure or from_rpc_error(await refusal.real(error)) from error
            if frames.failure is not None:
                raise frames.failure
            return answer
        raise _none_left()

    async def _reachable(self) -> "AsyncIterator[tuple[str, ImageServiceAsyncStub]]":
        """Those that answer, the one that answered last first; waits a moment when none does."""
        found = False
        for endpoint in list(self._endpoints):
            channel = self._channel(endpoint)
            try:
                async with asyncio.timeout(timeout_for(_CONNECT_SECONDS)):
                    connected = await _connected(channel)
            except TimeoutError:
                connected = False
            if connected:
                found = True
                yield endpoint, ImageServiceStub(channel)
            else:
                self._step_back(endpoint, "no connection")
        if not found and (endpoint := await self._first_to_come()):
            yield endpoint, ImageServiceStub(self._channel(endpoint))

    async def _first_to_come(self) -> str:
        """A store that can be reached within the time for connecting, empty when none can."""
        tasks = {
            asyncio.create_task(self._channel(endpoint).channel_ready()): endpoint
            for endpoint in self._endpoints
        }
        if not tasks:
            return ""
        seconds = timeout_for(_CONNECT_SECONDS)
        done, waiting = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        return tasks[done.pop()] if done else ""

    def _channel(self, endpoint: str) -> grpc.aio.Channel:
        channel = self._channels.get(endpoint)
        if channel is None:
            channel = self._channels[endpoint] = self._open_channel(endpoint)
        return channel

    def _away_or_raise(self, endpoint: str, error: grpc.aio.AioRpcError) -> None:
        failure = from_rpc_error(error)
        if failure.reason not in _AWAY:
            raise failure from error
        self._step_back(endpoint, failure.message)

    def _step_back(self, endpoint: str, why: str) -> None:
        _log.warning("image store %s: %s", endpoint, why)
        if endpoint in self._endpoints:
            self._endpoints.remove(endpoint)
            self._endpoints.append(endpoint)


class _Frames:
    """A client's frames on their way to a store.

    An error among them ends the stream in order and is kept: raised inside gRPC, it would only cancel the
    call to the store, and nobody would learn why.
    """

    def __init__(self, first: pb.UploadImageRequest, rest: AsyncIterator[bytes]) -> None:
        self._first = first.SerializeToString()
        self._rest = rest
        self.failure: Exception | None = None

    async def sent(self) -> AsyncIterator[bytes]:
        yield self._first
        try:
            async for frame in self._rest:
                yield frame
        except Exception as error:
            self.failure = error


async def _connected(channel: grpc.aio.Channel) -> bool:
    """False as soon as an attempt has failed: there are other stores to ask."""
    while (state := channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
        if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
            return False
        await channel.wait_for_state_change(state)
    return True


def _none_left() -> RemudaError:
    return RemudaError(Reason.STORE_UNAVAILABLE, "no image store answers", retry_after_seconds=1.0)
