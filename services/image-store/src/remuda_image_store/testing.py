"""For tests: image stores in this process or in others, over a real etcd, and their callers."""

import asyncio
import hashlib
import json
import random
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from remuda.image.v1 import chunk_pb2, chunk_pb2_grpc, image_pb2, image_pb2_grpc
from remuda.store.v1 import image_pb2 as store_pb2
from remuda_core.auth import grants
from remuda_core.config import TlsSettings
from remuda_core.etcd.cache import PrefixCache
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.keys import Keys
from remuda_core.ids import HostId, ImageId, InstanceId, OperationId, ProjectId
from remuda_core.images.chunks import CHUNK_BYTES, Digest, chunk_digest
from remuda_core.images.manifest import Manifest
from remuda_core.rpc.channel import open_channel
from remuda_core.rpc.first_status import FirstStatus
from remuda_core.telemetry.metrics import Metrics
from remuda_core.testing.etcd import free_ports
from remuda_core.testing.waiting import wait_for

from remuda_image_store import activation
from remuda_image_store.blob_names import BlobEntry, BlobNames, Names, decode, read_names
from remuda_image_store.blobs import Blobs
from remuda_image_store.content import Content
from remuda_image_store.main import serving
from remuda_image_store.records import Records
from remuda_image_store.settings import Settings
from remuda_image_store.sweeping import Sweeper

if TYPE_CHECKING:
    from remuda.image.v1.chunk_pb2_grpc import ChunkServiceAsyncStub
    from remuda.image.v1.image_pb2_grpc import ImageServiceAsyncStub

RAW, QCOW2 = image_pb2.Image.FORMAT_RAW, image_pb2.Image.FORMAT_QCOW2
PROJECT = ProjectId("demo")
_FRAME_BYTES = 1 << 20
_SECONDS = 60.0


def noise(seed: int, length: int) -> bytes:
    """Bytes that do not compress, always the same."""
    return random.Random(seed).randbytes(length)


def cut(disk: bytes) -> tuple[Manifest, dict[Digest, bytes]]:
    """The manifest of a disk, and its chunks that are not zero."""
    pieces = [disk[at : at + CHUNK_BYTES] for at in range(0, len(disk), CHUNK_BYTES)]
    digests = tuple(map(chunk_digest, pieces))
    chunks = {digest: piece for digest, piece in zip(digests, pieces, strict=True) if digest}
    return Manifest(virtual_bytes=len(disk), digests=digests), chunks


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """An image and the file that is uploaded as it."""

    id: ImageId
    data: bytes

    @property
    def name(self) -> str:
        return f"projects/{PROJECT}/images/{self.id}"

    def frames(
        self, start: int = 0, stop: int | None = None, *, finish: bool = True
    ) -> Iterator[image_pb2.UploadImageRequest]:
        """`finish`: the last of them completes the file."""
        end = len(self.data) if stop is None else stop
        for offset in range(start, end, _FRAME_BYTES) or [start]:
            after = min(end, offset + _FRAME_BYTES)
            yield image_pb2.UploadImageRequest(
                name=self.name if offset == start else "",
                offset=offset,
                data=self.data[offset:after],
                finish=finish and after == end,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Blank:
    """An image that an operation fills."""

    id: ImageId
    operation: OperationId
    project: ProjectId

    @property
    def name(self) -> str:
        return f"projects/{self.project}/images/{self.id}"


class Images:
    """An image store as the gateway uses it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub: ImageServiceAsyncStub = image_pb2_grpc.ImageServiceStub(channel)

    @property
    def options(self) -> dict[str, Any]:
        return {"timeout": _SECONDS}

    async def upload(self, sample: Sample, **frames: Any) -> image_pb2.UploadImageResponse:
        """`frames`: arguments of Sample.frames."""
        call = self.stub.UploadImage(iter(list(sample.frames(**frames))), **self.options)
        first = FirstStatus(call)
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise (await first.real(error)) from error

    async def committed(self, sample: Sample) -> int:
        request = image_pb2.GetUploadRequest(name=sample.name)
        return (await self.stub.GetUpload(request, **self.options)).committed_bytes

    async def download(
        self, sample: "Sample | Blank", offset: int = 0, form: "image_pb2.Image.Format.ValueType" = RAW
    ) -> bytes:
        """The virtual disk, or that file of it, from `offset` on, put together as a client does."""
        disk = bytearray()
        for frame in await self.frames(sample, offset, form):
            if frame.offset != offset + len(disk):
                raise ValueError(f"a frame begins at {frame.offset}, not at {offset + len(disk)}")
            disk += frame.data or bytes(frame.zero_bytes)
        return bytes(disk)

    async def frames(
        self, sample: "Sample | Blank", offset: int = 0, form: "image_pb2.Image.Format.ValueType" = RAW
    ) -> list[image_pb2.DownloadImageResponse]:
        request = image_pb2.DownloadImageRequest(name=sample.name, offset=offset, format=form)
        return [frame async for frame in self.stub.DownloadImage(request, **self.options)]


@dataclass(kw_only=True)
class Replica:
    """A process that is started at once."""

    port: int
    metrics_port: int
    log: Path
    config: Path

    def __post_init__(self) -> None:
        command = [sys.executable, "-m", "remuda_image_store.main", "--config", str(self.config)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def http(self, path: str) -> str:
        """What the metrics port answers. Raises OSError."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}{path}", timeout=5) as answer:
            return str(answer.read().decode())

    async def wait_serving(self) -> str:
        """Its address, once it serves. Raises TimeoutError, ChildProcessError with its last words."""

        def serves() -> bool:
            if self.process.poll() is not None:
                raise ChildProcessError(self.log.read_text())
            return '"event": "serving"' in self.log.read_text()

        await wait_for(serves, timeout=120, last_status=self.log.read_text)
        return self.address

    def kill(self) -> None:
        """SIGKILL; harmless when it has ended."""
        self.process.kill()
        self.process.wait()


def _toml(settings: Mapping[str, Any], table: str = "") -> str:
    """As much of TOML as settings need: strings, numbers, lists, tables. The scalars are as in JSON."""
    tables = {key: value for key, value in settings.items() if isinstance(value, Mapping)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items() if key not in tables]
    below = [_toml(value, f"{table}{key}.") for key, value in tables.items()]
    return "\n".join([f"[{table[:-1]}]" if table else "", *lines, *below])


@dataclass(kw_only=True)
class Cloud:
    """What surrounds the image stores: etcd, the backend that they share, the leader's key, the api."""

    etcd: Etcd
    settings: Settings
    grant_key: Ed25519PrivateKey
    directory: Path
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    lost: set[Digest] = field(default_factory=set)
    """Chunks that `collect` has missed."""

    @property
    def keys(self) -> Keys:
        return Keys(self.settings.etcd.prefix)

    async def serve(self) -> str:
        """One more replica in this process; its address."""
        scratch = self.directory / f"scratch-{uuid.uuid4().hex[:8]}"
        settings = self.settings.model_copy(update={"scratch_dir": scratch})
        replica = await self.stack.enter_async_context(serving(settings))
        return f"127.0.0.1:{replica.port}"

    def spawn(self, *, tls: TlsSettings | None = None) -> "Replica":
        """One more replica as a process of its own; see `Replica.wait_serving`."""
        port, metrics_port = free_ports(2)
        directory = self.directory / f"replica-{port}"
        directory.mkdir()
        settings = self.settings.model_copy(
            update={
                "listen": f"127.0.0.1:{port}",
                "metrics_listen": f"127.0.0.1:{metrics_port}",
                "scratch_dir": directory / "scratch",
                "tls": tls,
            }
        )
        config = directory / "image-store.toml"
        config.write_text(_toml(settings.model_dump(mode="json", exclude_none=True)))
        replica = Replica(port=port, metrics_port=metrics_port, log=directory / "log", config=config)
        self.stack.callback(replica.kill)
        return replica

    async def images(self, address: str) -> Images:
        """As the gateway calls."""
        channel = open_channel(address, None, insecure_identity="service/api")
        return Images(await self.stack.enter_async_context(channel))

    async def chunks(self, address: str, host: HostId) -> "ChunkServiceAsyncStub":
        """As an agent calls."""
        channel = open_channel(address, None, insecure_identity=f"host/{host}")
        return chunk_pb2_grpc.ChunkServiceStub(await self.stack.enter_async_context(channel))

    def grant(
        self,
        host: HostId,
        *images: ImageId,
        seconds: float = 60,
        key: Ed25519PrivateKey | None = None,
        fills: "Blank | None" = None,
        byte_limit: int = 1 << 40,
    ) -> chunk_pb2.SignedGrant:
        """As the leader signs it; `key`: somebody else does."""
        made = grants.grant(
            host=host,
            operation=OperationId(str(uuid.uuid4())) if fills is None else fills.operation,
            readable_images=images,
            expires=datetime.now(UTC) + timedelta(seconds=seconds),
            writable_image=None if fills is None else fills.id,
            byte_limit=0 if fills is None else byte_limit,
        )
        return grants.sign(made, key or self.grant_key)

    async def blank(self, *, project: ProjectId = PROJECT) -> "Blank":
        """The record as the admission of SnapshotInstance makes it."""
        blank = Blank(
            id=ImageId(str(uuid.uuid4())), operation=OperationId(str(uuid.uuid4())), project=project
        )
        display_name = f"snapshot-{blank.id[:8]}"
        record = store_pb2.ImageRecord(
            id=blank.id,
            project=project,
            image=image_pb2.Image(
                display_name=display_name, state=image_pb2.Image.STATE_UPLOADING, format=RAW
            ),
            operation_id=blank.operation,
            charge=store_pb2.ImageCharge(),
        )
        record.image.source.instance = f"projects/{project}/instances/{uuid.uuid4()}"
        await self.etcd.put(self.keys.image(blank.id), record.SerializeToString())
        await self.etcd.put(self.keys.image_name(project, display_name), blank.id.encode())
        return blank

    async def create(
        self, data: bytes, form: "image_pb2.Image.Format.ValueType" = RAW, *, sha256: str | None = None
    ) -> Sample:
        """The record as the api's CreateImage makes it; `sha256`: another one than that of `data`."""
        image = ImageId(str(uuid.uuid4()))
        name = f"image-{image[:8]}"
        record = store_pb2.ImageRecord(
            id=image,
            project=PROJECT,
            image=image_pb2.Image(
                display_name=name,
                state=image_pb2.Image.STATE_UPLOADING,
                format=form,
                file_bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest() if sha256 is None else sha256,
            ),
        )
        await self.etcd.put(self.keys.image(image), record.SerializeToString())
        await self.etcd.put(self.keys.image_name(PROJECT, name), image.encode())
        return Sample(id=image, data=data)

    async def record(self, sample: "Sample | Blank") -> image_pb2.Image | None:
        kv = await self.etcd.get(self.keys.image(sample.id))
        return None if kv is None else store_pb2.ImageRecord.FromString(kv.value).image

    async def delete(self, sample: "Sample | Blank") -> None:
        """Marked as the api's DeleteImage does it."""
        key = self.keys.image(sample.id)
        kv = await self.etcd.get(key)
        if kv is None:
            raise ValueError(f"{sample.name} does not exist")
        record = store_pb2.ImageRecord.FromString(kv.value)
        record.image.state = image_pb2.Image.STATE_DELETING
        await self.etcd.put(key, record.SerializeToString())

    async def wait_gone(self, sample: "Sample | Blank") -> None:
        async def gone() -> bool:
            return await self.record(sample) is None

        await wait_for(gone, timeout=120, last_status=lambda: f"{sample.name} is still there")

    async def put_reference(self, sample: Sample, instance: InstanceId) -> str:
        """As the admission of an instance makes it; its key."""
        key = self.keys.image_ref(sample.id, instance)
        await self.etcd.put(key, store_pb2.ImageRef(instance_id=instance).SerializeToString())
        return key

    def blobs(self, kind: str) -> set[str]:
        """Names of the blobs of a kind: chunks, manifests, uploads."""
        root = self.directory / "backend" / kind
        return {path.name for path in root.rglob("*") if path.is_file()}

    async def collect(self, passes: int = 2) -> None:
        """Garbage collection without a grace, beside that of the service: what nothing refers to goes."""
        keys = self.keys
        async with PrefixCache[BlobEntry](self.etcd, keys.blob_names, lambda kv: decode(kv, keys)) as cache:
            content = Content(Blobs.open(self.settings.backend), BlobNames(self.etcd, keys, cache))
            sweeper = Sweeper(
                self.etcd,
                Records(self.etcd, keys),
                content,
                Metrics(),
                holder="test",
                grace_seconds=1e-6,
                every_seconds=1e-6,
                on_lost=self.lost.add,
            )
            for _ in range(passes):
                await sweeper.sweep()

    def needed(self, *samples: Sample) -> set[str]:
        """Names of the chunks that raw images have."""
        chunks = (
            sample.data[at : at + CHUNK_BYTES]
            for sample in samples
            for at in range(0, len(sample.data), CHUNK_BYTES)
        )
        return {digest.hex() for chunk in chunks if (digest := chunk_digest(chunk))}


class Gate:
    """Holds imports and commits between PENDING and ACTIVE, in this process, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = asyncio.Event()

        async def held(etcd: Etcd, keys: Keys) -> Names:
            await self.open.wait()
            return await read_names(etcd, keys)

        monkeypatch.setattr(activation, "read_names", held)
