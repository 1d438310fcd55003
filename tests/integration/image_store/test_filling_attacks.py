"""What a host with a certificate and bad intentions gets: nothing that its grant does not give."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
import pytest_asyncio
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from remuda.image.v1 import chunk_pb2, chunk_pb2_grpc, image_pb2_grpc, source_pb2
from remuda_core.config import TlsSettings
from remuda_core.ids import HostId, ImageId, OperationId, ProjectId
from remuda_core.images.chunks import CHUNK_BYTES, Digest, Encoding, digest_of, encode
from remuda_core.images.manifest import Manifest, serialize
from remuda_core.rpc.channel import open_channel
from remuda_core.rpc.status import from_rpc_error
from remuda_core.rpc.tls import Tls
from remuda_image_store.testing import Cloud, Sample, cut, noise
from remuda_lab.pki import Authority, Identity, KeyPair

if TYPE_CHECKING:
    from remuda.image.v1.chunk_pb2_grpc import ChunkServiceAsyncStub

MIB = 1 << 20
CRASH = source_pb2.ImageSource.CONSISTENCY_CRASH
IDENTITY, ZSTD = Encoding.IDENTITY, Encoding.ZSTD


@dataclass(kw_only=True)
class Mesh:
    """A store that takes certificates only, and whoever calls it."""

    cloud: Cloud
    authority: Authority
    address: str

    async def channel(self, path: str) -> grpc.aio.Channel:
        pair = issued(self.authority, path)
        tls = Tls(
            ca=self.authority.certificate.read_bytes(),
            cert=pair.certificate.read_bytes(),
            key=pair.key.read_bytes(),
        )
        return await self.cloud.stack.enter_async_context(open_channel(self.address, tls))

    async def chunks(self, path: str) -> "ChunkServiceAsyncStub":
        return chunk_pb2_grpc.ChunkServiceStub(await self.channel(path))

    async def victim(self, disk: bytes) -> Sample:
        """A private image of another project, uploaded by a client of it."""
        sample = await self.cloud.create(disk)
        stub = image_pb2_grpc.ImageServiceStub(await self.channel("service/api"))
        await stub.UploadImage(iter(list(sample.frames())))
        return sample

    async def state(self) -> tuple[dict[str, bytes], dict[str, int]]:
        """All that a host could change: records, and blobs with their sizes."""
        prefix = self.cloud.keys.prefix
        records = {
            kv.key.removeprefix(prefix): kv.value
            async for page in self.cloud.etcd.pages(prefix)
            for kv in page.kvs
            if kv.key.removeprefix(prefix).partition("/")[0] in ("images", "uploads", "image_usage")
        }
        root = self.cloud.directory / "backend"
        kinds = [root / kind for kind in ("chunks", "manifests", "uploads")]
        files = await asyncio.to_thread(
            lambda: [path for kind in kinds for path in kind.rglob("*") if path.is_file()]
        )
        return records, {str(path.relative_to(root)): path.stat().st_size for path in files}


def issued(authority: Authority, path: str) -> KeyPair:
    local = IPv4Address("127.0.0.1")
    identity = Identity(common_name="x", path=path, addresses=(local,), roles=("admin",))
    return authority.issue(identity, authority.directory.parent / "issued" / path)


@pytest_asyncio.fixture
async def mesh(cloud: Cloud, tmp_path: Path) -> AsyncIterator[Mesh]:
    authority = Authority.create(tmp_path / "ca")
    own = issued(authority, "service/image-store")
    tls = TlsSettings(ca=authority.certificate, cert=own.certificate, key=own.key)
    cloud.settings = cloud.settings.model_copy(update={"tls": tls})
    yield Mesh(cloud=cloud, authority=authority, address=await cloud.serve())


@pytest.fixture
def host() -> HostId:
    return HostId(str(uuid.uuid4()))


def frame(digest: bytes, data: bytes, encoding: Encoding, plain_bytes: int) -> chunk_pb2.WriteChunksRequest:
    """A chunk in one frame."""
    return chunk_pb2.WriteChunksRequest(
        digest=digest,
        data=data,
        last=True,
        encoding=chunk_pb2.ReadChunksResponse.Encoding.ValueType(encoding),
        plain_bytes=plain_bytes,
    )


def frames(
    grant: chunk_pb2.SignedGrant | None, image: str, *following: chunk_pb2.WriteChunksRequest
) -> list[chunk_pb2.WriteChunksRequest]:
    following[0].MergeFrom(chunk_pb2.WriteChunksRequest(grant=grant, image_id=image))
    return list(following)


def split(whole: chunk_pb2.WriteChunksRequest, size: int = MIB) -> list[chunk_pb2.WriteChunksRequest]:
    """The same chunk in frames of `size`."""
    pieces = []
    for at in range(0, len(whole.data), size):
        piece = chunk_pb2.WriteChunksRequest()
        piece.CopyFrom(whole)
        piece.data, piece.last = whole.data[at : at + size], at + size >= len(whole.data)
        pieces.append(piece)
    return pieces


def find(grant: chunk_pb2.SignedGrant, image: str, *digests: bytes) -> chunk_pb2.FindChunksRequest:
    return chunk_pb2.FindChunksRequest(grant=grant, image_id=image, digests=digests)


def commit(grant: chunk_pb2.SignedGrant, image: str, manifest: bytes) -> chunk_pb2.CommitImageRequest:
    return chunk_pb2.CommitImageRequest(grant=grant, image_id=image, manifest=manifest, consistency=CRASH)


async def refusal(call: Awaitable[object]) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


def everything(
    chunks: "ChunkServiceAsyncStub", grant: chunk_pb2.SignedGrant, image: str, disk: bytes
) -> dict[str, Callable[[], Awaitable[object]]]:
    """What a host may ask, about an image of one small chunk."""
    digest = digest_of(disk)
    manifest = serialize(Manifest(virtual_bytes=len(disk), digests=(digest,)))
    whole = frame(digest, disk, IDENTITY, len(disk))
    return {
        "GetManifest": lambda: chunks.GetManifest(chunk_pb2.GetManifestRequest(grant=grant, image_id=image)),
        "ReadChunks": lambda: chunks.ReadChunks(
            chunk_pb2.ReadChunksRequest(grant=grant, image_id=image, digests=[digest])
        ).read(),
        "FindChunks": lambda: chunks.FindChunks(find(grant, image, digest)),
        "WriteChunks": lambda: chunks.WriteChunks(iter(frames(grant, image, whole))),
        "CommitImage": lambda: chunks.CommitImage(commit(grant, image, manifest)),
    }


def tampered(grant: chunk_pb2.SignedGrant, image: ImageId) -> chunk_pb2.SignedGrant:
    body = chunk_pb2.Grant.FromString(grant.grant)
    body.writable_image = image
    body.readable_images.append(image)
    return chunk_pb2.SignedGrant(grant=body.SerializeToString(), signature=grant.signature)


async def test_without_a_grant_that_fits_a_host_reads_and_writes_nothing(mesh: Mesh, host: HostId) -> None:
    cloud, secret = mesh.cloud, noise(1, MIB)
    victim, mine, other = await mesh.victim(secret), await cloud.blank(), await cloud.blank()
    stranger = HostId(str(uuid.uuid4()))
    foreign = replace(mine, operation=OperationId(str(uuid.uuid4())))
    fit = cloud.grant(host, victim.id, fills=mine)
    grants = {
        "none": chunk_pb2.SignedGrant(),
        "another host's": cloud.grant(stranger, victim.id, fills=mine),
        "expired": cloud.grant(host, victim.id, fills=mine, seconds=-60),
        "forged": cloud.grant(host, victim.id, fills=mine, key=Ed25519PrivateKey.generate()),
        "tampered": tampered(cloud.grant(host, fills=other), mine.id),
        "for another image": cloud.grant(host, fills=other),
        "without a writable image": cloud.grant(host),
        "of another operation": cloud.grant(host, fills=foreign),
    }
    chunks = await mesh.chunks(f"host/{host}")
    before = await mesh.state()
    for why, grant in grants.items():
        for name, call in everything(chunks, grant, mine.id, secret).items():
            assert await refusal(call()) is grpc.StatusCode.PERMISSION_DENIED, (why, name)
        for name in ("GetManifest", "ReadChunks"):
            if why != "of another operation":
                call = everything(chunks, grant, victim.id, secret)[name]
                assert await refusal(call()) is grpc.StatusCode.PERMISSION_DENIED, (why, name, "victim")
    for path in (f"host/{stranger}", "service/scheduler", "service/api", "user/admin"):
        chunks = await mesh.chunks(path)
        for name, call in everything(chunks, fit, mine.id, secret).items():
            assert await refusal(call()) is grpc.StatusCode.PERMISSION_DENIED, (path, name)
    assert await mesh.state() == before


async def test_a_grant_that_lets_nothing_be_filled_is_not_taken_for_an_image_without_a_name(
    mesh: Mesh, host: HostId
) -> None:
    chunks, data = await mesh.chunks(f"host/{host}"), noise(2, 100)
    before = await mesh.state()
    for grant in (mesh.cloud.grant(host), mesh.cloud.grant(host, fills=await mesh.cloud.blank())):
        call = chunks.WriteChunks(iter(frames(grant, "", frame(digest_of(data), data, IDENTITY, 100))))
        assert await refusal(call) is grpc.StatusCode.PERMISSION_DENIED
    assert (await mesh.state())[1] == before[1]


async def test_an_image_is_only_filled_while_it_is_uploading(mesh: Mesh, host: HostId) -> None:
    cloud, chunks = mesh.cloud, await mesh.chunks(f"host/{host}")
    done, going, gone = [await cloud.blank() for _ in range(3)]
    grants = {blank: cloud.grant(host, fills=blank) for blank in (done, going, gone)}
    first, second = noise(3, MIB), noise(4, MIB)
    for blank in (done, going):
        await everything(chunks, grants[blank], blank.id, first)["WriteChunks"]()
    await everything(chunks, grants[done], done.id, first)["CommitImage"]()
    await cloud.delete(going)
    await cloud.etcd.delete(cloud.keys.image(gone.id))
    await cloud.wait_gone(going)
    missing = grpc.StatusCode.NOT_FOUND
    wanted = {done: grpc.StatusCode.FAILED_PRECONDITION, going: missing, gone: missing}
    before = await mesh.state()
    for blank, code in wanted.items():
        for name in ("FindChunks", "WriteChunks", "CommitImage"):
            call = everything(chunks, grants[blank], blank.id, second)[name]
            assert await refusal(call()) is code, name
    assert await mesh.state() == before


async def test_whether_the_store_has_a_foreign_chunk_shows_in_no_answer(mesh: Mesh, host: HostId) -> None:
    # Half of it compresses: the stored size says more than the plain one.
    foreign, unknown = (noise(seed, CHUNK_BYTES // 2) + bytes(CHUNK_BYTES // 2) for seed in (5, 6))
    victim = await mesh.victim(foreign + noise(7, MIB))
    chunks = await mesh.chunks(f"host/{host}")
    answers = []
    for data in (foreign, unknown):
        blank = await mesh.cloud.blank(project=ProjectId("attacker"))
        digest, stored = digest_of(data), encode(data)
        grant = mesh.cloud.grant(host, fills=blank)
        manifest = serialize(Manifest(virtual_bytes=CHUNK_BYTES, digests=(digest,)))
        last = commit(grant, blank.id, manifest)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await chunks.CommitImage(last)
        question = find(grant, blank.id, digest)
        before = await chunks.FindChunks(question)
        # Not as the store would encode it: what is read later must not be what the attacker had sent.
        frames_ = split(frame(digest, data, IDENTITY, CHUNK_BYTES))
        written = await chunks.WriteChunks(iter(frames(grant, blank.id, *frames_)))
        after = await chunks.FindChunks(question)
        committed = await chunks.CommitImage(last)
        record = await mesh.cloud.record(blank)
        assert record is not None
        read = chunk_pb2.ReadChunksRequest(
            grant=mesh.cloud.grant(host, blank.id), image_id=blank.id, digests=[digest]
        )
        received = [piece async for piece in chunks.ReadChunks(read)]
        refused = from_rpc_error(caught.value)
        assert list(before.lacking) == [digest]
        assert list(after.lacking) == []
        answers.append(
            (
                (refused.reason, refused.message, refused.metadata),
                written.chunks,
                written.stored_bytes - len(stored.data),
                committed.stored_bytes - len(stored.data),
                record.stored_bytes - len(stored.data),
                sum(len(piece.data) for piece in received) - len(stored.data),
                received[0].encoding - stored.encoding,
            )
        )
    assert answers[0] == answers[1]
    assert answers[0][1:] == (1, 0, 0, 0, 0, 0)
    assert (await mesh.cloud.record(victim)) is not None


async def test_a_commit_cannot_name_a_foreign_chunk_into_an_image_of_ones_own(
    mesh: Mesh, host: HostId
) -> None:
    secret, own = noise(8, CHUNK_BYTES), noise(9, CHUNK_BYTES)
    await mesh.victim(secret)
    blank = await mesh.cloud.blank(project=ProjectId("attacker"))
    chunks = await mesh.chunks(f"host/{host}")
    grant = mesh.cloud.grant(host, fills=blank)
    whole = split(frame(digest_of(own), own, IDENTITY, CHUNK_BYTES))
    await chunks.WriteChunks(iter(frames(grant, blank.id, *whole)))
    manifest, _ = cut(own + secret)
    before = await mesh.state()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await chunks.CommitImage(commit(grant, blank.id, serialize(manifest)))
    refused = from_rpc_error(caught.value)
    assert (refused.reason, refused.metadata["lacking"]) == ("IMAGE_INCOMPLETE", "1")
    assert await mesh.state() == before


def bomb(plain: int) -> bytes:
    """`plain` zeros, announced as such."""
    packer = zstandard.ZstdCompressor(level=1).compressobj(size=plain)
    block = bytes(MIB)
    return b"".join(packer.compress(block) for _ in range(plain // MIB)) + packer.flush()


def unannounced(data: bytes) -> bytes:
    packer = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return packer.compress(data) + packer.flush()


def bad_chunks() -> dict[str, tuple[list[chunk_pb2.WriteChunksRequest], grpc.StatusCode]]:
    data, text = noise(10, 2 * MIB), b"abc" * 1000
    packed, lost, wrong = encode(text).data, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.INVALID_ARGUMENT
    good, name = frame(digest_of(data), data, IDENTITY, 2 * MIB), digest_of(text)
    changed = split(good)
    changed[1].digest = bytes(32)
    longer = split(good)
    longer[1].plain_bytes += 1
    huge = split(frame(digest_of(data), data, IDENTITY, 2 * MIB), 2 * MIB)
    strange = frame(name, text, IDENTITY, len(text))
    strange.encoding = 7  # type: ignore[assignment]
    return {
        "another digest": (split(frame(name, data, IDENTITY, 2 * MIB)), lost),
        "another length": (split(frame(digest_of(data), data, IDENTITY, 2 * MIB + 1)), lost),
        "no zstd": ([frame(name, text, ZSTD, len(text))], lost),
        "a zstd frame cut short": ([frame(name, packed[:-1], ZSTD, len(text))], lost),
        "something behind the zstd frame": ([frame(name, packed + b"hidden", ZSTD, len(text))], lost),
        "two zstd frames": ([frame(name, encode(text[:1500]).data * 2, ZSTD, len(text))], lost),
        "a zstd frame of unsaid size": ([frame(name, unannounced(text), ZSTD, len(text))], lost),
        "zeros": ([frame(digest_of(bytes(MIB)), encode(bytes(MIB)).data, ZSTD, MIB)], wrong),
        "longer encoded than plain": ([frame(name, text + b"x", IDENTITY, len(text))], wrong),
        "larger than a chunk": ([frame(name, text, IDENTITY, CHUNK_BYTES + 1)], wrong),
        "a frame that is too large": (huge, wrong),
        "no bytes": ([frame(name, b"", IDENTITY, len(text))], wrong),
        "too many frames": (split(good, 2 * MIB // 32), wrong),
        "no end": (split(good)[:1], wrong),
        "another chunk before the end": (changed, wrong),
        "another length before the end": (longer, wrong),
        "an encoding that does not exist": ([strange], wrong),
        "a digest that is none": ([frame(name[:31], text, IDENTITY, len(text))], wrong),
    }


async def test_chunks_that_are_not_what_they_say_leave_nothing(mesh: Mesh, host: HostId) -> None:
    blank, chunks = await mesh.cloud.blank(), await mesh.chunks(f"host/{host}")
    grant = mesh.cloud.grant(host, fills=blank)
    before = await mesh.state()
    for why, (sent, code) in bad_chunks().items():
        call = chunks.WriteChunks(iter(frames(grant, blank.id, *sent)))
        assert await refusal(call) is code, why
        assert await mesh.state() == before, why


async def test_a_zstd_bomb_takes_no_memory(cloud: Cloud, host: HostId) -> None:
    replica = cloud.spawn()
    chunks, blank = await cloud.chunks(await replica.wait_serving(), host), await cloud.blank()
    grant = cloud.grant(host, fills=blank)
    data = bomb(512 * MIB)
    assert len(data) < MIB
    for digest in (digest_of(b"x"), digest_of(bytes(CHUNK_BYTES))):
        call = chunks.WriteChunks(iter(frames(grant, blank.id, frame(digest, data, ZSTD, CHUNK_BYTES))))
        assert await refusal(call) is grpc.StatusCode.DATA_LOSS
    status = Path(f"/proc/{replica.process.pid}/status").read_text()
    (peak_kib,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    assert peak_kib < 450 << 10


async def test_a_manifest_that_does_not_fit_itself_or_its_chunks_is_refused(mesh: Mesh, host: HostId) -> None:
    blank, chunks = await mesh.cloud.blank(), await mesh.chunks(f"host/{host}")
    grant = mesh.cloud.grant(host, fills=blank)
    short, full = noise(11, 1024), noise(12, CHUNK_BYTES)
    for data in (short, full):
        whole = split(frame(digest_of(data), data, IDENTITY, len(data)))
        await chunks.WriteChunks(iter(frames(grant, blank.id, *whole)))
    ends, fills = digest_of(short), digest_of(full)

    def message(virtual_bytes: int, *digests: Digest, chunk_bytes: int = CHUNK_BYTES) -> bytes:
        made = chunk_pb2.Manifest(virtual_bytes=virtual_bytes, chunk_bytes=chunk_bytes, digests=digests)
        return made.SerializeToString()

    incomplete, wrong = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT
    cases = [
        (b"\xff\xff", wrong),
        (message(0), wrong),
        (message(-1, fills), wrong),
        (message(CHUNK_BYTES, fills, fills), wrong),
        (message(2 * CHUNK_BYTES, fills), wrong),
        (message(CHUNK_BYTES, Digest(b"short")), wrong),
        (message(CHUNK_BYTES, fills, chunk_bytes=CHUNK_BYTES // 2), wrong),
        (message(CHUNK_BYTES + 1024, ends, ends), wrong),
        # A chunk that is not as long as its place.
        (message(CHUNK_BYTES, ends), incomplete),
        (message(CHUNK_BYTES + 512, fills, ends), incomplete),
        (message(CHUNK_BYTES + 1000, fills, ends), wrong),
        (message((4 << 40) + CHUNK_BYTES, *[Digest(b"")] * ((1 << 20) + 1)), wrong),
    ]
    before = await mesh.state()
    for manifest, code in cases:
        assert await refusal(chunks.CommitImage(commit(grant, blank.id, manifest))) is code, manifest[:100]
    assert await mesh.state() == before
    fit = commit(grant, blank.id, message(CHUNK_BYTES + 1024, fills, ends))
    assert (await chunks.CommitImage(fit)).stored_bytes == CHUNK_BYTES + 1024


async def test_more_bytes_than_the_grant_allows_are_refused_however_they_are_cut(
    mesh: Mesh, host: HostId
) -> None:
    blank, chunks = await mesh.cloud.blank(), await mesh.chunks(f"host/{host}")
    grant = mesh.cloud.grant(host, fills=blank, byte_limit=3 * MIB)
    pieces = [noise(seed, MIB) for seed in range(20, 24)]

    def send(*data: bytes) -> Awaitable[chunk_pb2.WriteChunksResponse]:
        whole = [frame(digest_of(each), each, IDENTITY, MIB) for each in data]
        return chunks.WriteChunks(iter(frames(grant, blank.id, *whole)))

    await send(*pieces[:2])
    # What was brought before counts once.
    await send(*pieces[:3])
    assert await refusal(send(pieces[3])) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await refusal(send(*pieces)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    nothing = mesh.cloud.grant(host, fills=blank, byte_limit=0)
    call = chunks.WriteChunks(
        iter(frames(nothing, blank.id, frame(digest_of(pieces[3]), pieces[3], IDENTITY, MIB)))
    )
    assert await refusal(call) is grpc.StatusCode.RESOURCE_EXHAUSTED
    many = [frame(digest_of(bytes([n])), bytes([n]), IDENTITY, 1) for n in range(1, 66)]
    roomy = mesh.cloud.grant(host, fills=blank)
    call = chunks.WriteChunks(iter(frames(roomy, blank.id, *many)))
    assert await refusal(call) is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_host_that_opens_calls_and_sends_nothing_keeps_no_other_host_from_sending(
    mesh: Mesh, host: HostId
) -> None:
    cloud, other = mesh.cloud, HostId(str(uuid.uuid4()))
    theirs, ours = await cloud.blank(), await cloud.blank()
    data = noise(30, 2 * MIB)
    begun, *rest = split(frame(digest_of(data), data, IDENTITY, 2 * MIB))
    idle = await mesh.chunks(f"host/{other}")
    grant = cloud.grant(other, fills=theirs)
    calls = [idle.WriteChunks() for _ in range(40)]
    for call in calls:
        await call.write(frames(grant, theirs.id, begun)[0])
    busy, granted = await mesh.chunks(f"host/{host}"), cloud.grant(host, fills=ours)
    begun.ClearField("grant")
    sent = frames(granted, ours.id, begun, *rest)
    assert (await busy.WriteChunks(iter(sent), timeout=120)).chunks == 1
    assert not any(call.done() for call in calls)
    for call in calls:
        call.cancel()
