"""The process: killed, drained, misconfigured; who it talks to; what it says about itself."""

import asyncio
import itertools
import signal
import subprocess
import sys
import uuid
from ipaddress import IPv4Address
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2
from remuda.image.v1 import chunk_pb2, chunk_pb2_grpc, image_pb2, image_pb2_grpc
from remuda_core.config import TlsSettings
from remuda_core.ids import HostId
from remuda_core.images.chunks import CHUNK_BYTES
from remuda_core.rpc.channel import open_channel
from remuda_core.rpc.tls import Tls
from remuda_core.testing.waiting import wait_for
from remuda_image_store.testing import Cloud, noise
from remuda_lab.pki import Authority, Identity, KeyPair

MIB = 1 << 20


async def test_an_upload_whose_replica_is_killed_goes_on_at_another_one(cloud: Cloud) -> None:
    first, second = cloud.spawn(), cloud.spawn()
    sample = await cloud.create(noise(1, 5 * CHUNK_BYTES + 1536))
    one = await cloud.images(await first.wait_serving())
    call = one.stub.UploadImage(**one.options)
    frames = sample.frames()
    for frame in itertools.islice(frames, 3 * CHUNK_BYTES // MIB):
        await call.write(frame)

    async def two_chunks_are_safe() -> bool:
        return await one.committed(sample) >= 2 * CHUNK_BYTES

    await wait_for(two_chunks_are_safe, timeout=20)
    first.process.send_signal(signal.SIGKILL)
    with pytest.raises(grpc.aio.AioRpcError):
        await call
    two = await cloud.images(await second.wait_serving())
    safe = await two.committed(sample)
    assert 2 * CHUNK_BYTES <= safe <= 3 * CHUNK_BYTES
    answer = await two.upload(sample, start=safe)
    assert answer.image.state == image_pb2.Image.STATE_ACTIVE
    assert await two.download(sample) == sample.data


async def test_sigterm_lets_a_download_finish_and_then_ends_the_process(cloud: Cloud) -> None:
    replica = cloud.spawn()
    images = await cloud.images(await replica.wait_serving())
    sample = await cloud.create(noise(2, 24 * MIB))
    await images.upload(sample)
    request = image_pb2.DownloadImageRequest(name=sample.name)
    call = images.stub.DownloadImage(request, **images.options)
    disk = bytearray()
    async for frame in call:
        if not disk:
            replica.process.send_signal(signal.SIGTERM)
        disk += frame.data
    assert bytes(disk) == sample.data
    assert await asyncio.to_thread(replica.process.wait, 20) == 0


async def test_it_says_what_it_holds_and_that_it_is_well(cloud: Cloud) -> None:
    cloud.settings = cloud.settings.model_copy(update={"count_seconds": 0.2})
    replica = cloud.spawn()
    address = await replica.wait_serving()
    images = await cloud.images(address)
    await images.upload(await cloud.create(noise(3, MIB) + bytes(7 * MIB)))
    assert replica.http("/healthz") == "ok\n"

    def counted() -> bool:
        lines = replica.http("/metrics").splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if line.startswith("remuda_image_store_bytes{"))
        sizes = {kind: float(values[f'remuda_image_store_bytes{{kind="{kind}"}}']) for kind in _KINDS}
        return (
            sizes["virtual"] == 8 * MIB
            and MIB <= sizes["chunks"] < 2 * MIB
            and sizes["uploads"] == 0 < sizes["manifests"] < 200
            and 0 < sizes["free"] < sizes["capacity"]
        )

    await wait_for(counted, timeout=20, ignoring=(KeyError,))
    async with grpc.aio.insecure_channel(address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        answer = await check(health_pb2.HealthCheckRequest(service="remuda.image.v1.ImageService"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


_KINDS = ("chunks", "manifests", "uploads", "virtual", "free", "capacity")


def channel_as(authority: Authority, pair: KeyPair, address: str) -> grpc.aio.Channel:
    tls = Tls(
        ca=authority.certificate.read_bytes(),
        cert=pair.certificate.read_bytes(),
        key=pair.key.read_bytes(),
    )
    return open_channel(address, tls)


async def test_over_mtls_a_caller_is_who_its_certificate_says_and_nobody_else(
    cloud: Cloud, tmp_path: Path
) -> None:
    authority = Authority.create(tmp_path / "ca")
    host, other = (HostId(str(uuid.uuid4())) for _ in range(2))

    def issue(path: str) -> KeyPair:
        local = IPv4Address("127.0.0.1")
        identity = Identity(common_name="x", path=path, addresses=(local,), roles=("admin",))
        return authority.issue(identity, tmp_path / path)

    own = issue("service/image-store")
    tls = TlsSettings(ca=authority.certificate, cert=own.certificate, key=own.key)
    address = await cloud.spawn(tls=tls).wait_serving()
    sample = await cloud.create(noise(4, MIB))
    async with channel_as(authority, issue("service/api"), address) as channel:
        images = image_pb2_grpc.ImageServiceStub(channel)
        await images.UploadImage(iter(list(sample.frames())))
    manifest = chunk_pb2.GetManifestRequest(grant=cloud.grant(host, sample.id), image_id=sample.id)
    async with channel_as(authority, issue(f"host/{host}"), address) as channel:
        assert (await chunk_pb2_grpc.ChunkServiceStub(channel).GetManifest(manifest)).manifest
    upload = image_pb2.GetUploadRequest(name=sample.name)
    refused = (f"host/{other}", "service/scheduler", "user/admin")
    for path in refused:
        async with channel_as(authority, issue(path), address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await chunk_pb2_grpc.ChunkServiceStub(channel).GetManifest(manifest)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await image_pb2_grpc.ImageServiceStub(channel).GetUpload(upload)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("--grant_public_key=/nowhere", "grant_public_key"),
        ("--backend=nonsense", "backend"),
        ("--scratch_bytes=-1", "scratch_bytes"),
    ],
)
def test_a_wrong_configuration_is_one_line_and_status_2(tmp_path: Path, wrong: str, why: str) -> None:
    key = tmp_path / "grant.pem"
    openssl = ["openssl", "genpkey", "-algorithm", "ed25519"]
    private = subprocess.run(openssl, capture_output=True, check=True).stdout
    key.write_bytes(
        subprocess.run(["openssl", "pkey", "-pubout"], input=private, capture_output=True, check=True).stdout
    )
    given = {
        "listen": "127.0.0.1:0",
        "backend": f"file://{tmp_path}/backend",
        "scratch_dir": str(tmp_path / "scratch"),
        "grant_public_key": str(key),
    }
    flags = [f"--{name}={value}" for name, value in given.items() if not wrong.startswith(f"--{name}=")]
    done = subprocess.run(
        [sys.executable, "-m", "remuda_image_store.main", *flags, wrong],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1
