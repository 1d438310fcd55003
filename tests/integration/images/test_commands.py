"""`remuda image` as people run it: command, gateway and image store are processes, every channel is TLS."""

import asyncio
import hashlib
import json
import os
import signal
import sys
import uuid
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from remuda.image.v1 import image_pb2
from remuda_cli.exit_codes import ExitCode
from remuda_core.images.chunks import CHUNK_BYTES
from remuda_core.testing.etcd import EtcdServer
from remuda_core.testing.tcp_proxy import TcpProxy, tcp_proxy
from remuda_core.testing.waiting import wait_for, wait_for_sync
from remuda_image_store.testing import noise
from remuda_image_store.testing_disks import checked
from remuda_lab.pki import Authority, user_identity

from tests.integration.api.conftest import Client
from tests.integration.mesh.conftest import clients
from tests.integration.mesh.processes import Mesh

Image = image_pb2.Image
MIB = 1 << 20
WAIT_SECONDS = 150.0
SERVICES = ("api", "image-store")
HOLE_BYTES = CHUNK_BYTES
# No whole number of chunks, and with a hole.
DISK = noise(1, 3 * CHUNK_BYTES) + bytes(HOLE_BYTES) + noise(2, MIB + 512)
# Fewer than any transfer of DISK takes, and more than a chunk.
HELD_AFTER_BYTES = 9 * MIB
# Within HTTP/2's first window: it arrives though nothing comes back.
TINY_BYTES = 48 << 10


@pytest.fixture(scope="module")
def services(etcd_server: EtcdServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    directory = tmp_path_factory.mktemp("images")
    made = Mesh(
        directory=directory,
        etcd=etcd_server,
        prefix=f"/images-{uuid.uuid4()}/",
        authority=Authority.create(directory / "ca"),
    )
    try:
        made.start(*SERVICES)
        wait_for_sync(
            lambda: all(made.http(name, "/healthz") == "ok\n" for name in SERVICES),
            timeout=WAIT_SECONDS,
            last_status=made.log_tails,
        )
        yield made
    finally:
        made.stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == ExitCode.DONE, self.err
        return json.loads(self.out)


@dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """A person at a shell; the paths of files are those of `directory`."""

    mesh: Mesh
    directory: Path
    user: str
    project: str
    proxy: TcpProxy
    """Through which all of them go."""
    client: Client
    """Of somebody who looks at the same gateway, beside the proxy."""

    async def start(self, *words: object) -> Process:
        assert self.mesh.authority is not None
        name = f"{self.user}-{uuid.uuid4().hex[:8]}"
        identity = user_identity(name, (f"project:{self.project}",))
        pair = self.mesh.authority.issue(identity, self.mesh.directory / "pki" / name)
        kept = {key: value for key, value in os.environ.items() if not key.startswith("REMUDA_")}
        environment = kept | {
            "HOME": str(self.directory),
            "REMUDA_ENDPOINT": self.proxy.endpoint,
            "REMUDA_CACERT": str(self.mesh.authority.certificate),
            "REMUDA_CERT": str(pair.certificate),
            "REMUDA_KEY": str(pair.key),
            "REMUDA_PROJECT": self.project,
        }
        command = Path(sys.executable).with_name("remuda")
        return await asyncio.create_subprocess_exec(
            command,
            "image",
            *map(str, words),
            cwd=self.directory,
            env=environment,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
        )

    async def run(self, *words: object) -> Done:
        process = await self.start(*words)
        try:
            out, err = await asyncio.wait_for(process.communicate(), WAIT_SECONDS)
        finally:
            if process.returncode is None:
                process.kill()
        return Done(code=await process.wait(), out=out.decode(), err=err.decode())

    async def kill(self, process: Process) -> None:
        """SIGKILL in the middle, and its connections with it."""
        process.kill()
        await process.communicate()
        assert await process.wait() == -signal.SIGKILL
        await self.proxy.cut()
        await self.proxy.restore()

    async def until(self, seen: Callable[[Done], bool], *words: object) -> Done:
        """What another command has changed is seen soon by those that read, not at once."""
        last: list[Done] = []

        async def as_wanted() -> bool:
            last[:] = [await self.run(*words)]
            return seen(last[0])

        await wait_for(as_wanted, timeout=WAIT_SECONDS, last_status=lambda: last)
        return last[0]

    async def until_gone(self, name: str) -> None:
        await self.until(lambda done: done.code == ExitCode.NOT_FOUND, "show", name)


@pytest_asyncio.fixture
async def alice(services: Mesh, tmp_path: Path) -> AsyncIterator[Commands]:
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(tcp_proxy(services.endpoints["api"]))
        _, client = await clients(services, stack)
        yield Commands(
            mesh=services, directory=tmp_path, user="alice", project="demo", proxy=proxy, client=client
        )


@pytest.fixture
def bob(alice: Commands) -> Commands:
    return Commands(
        mesh=alice.mesh,
        directory=alice.directory,
        user="bob",
        project="other",
        proxy=alice.proxy,
        client=alice.client,
    )


async def test_a_command_that_is_killed_goes_on_where_it_was_and_the_file_is_the_same(
    alice: Commands, tmp_path: Path
) -> None:
    file, target = tmp_path / "golden.raw", tmp_path / "back.raw"
    file.write_bytes(DISK)
    proxy = alice.proxy

    async def committed() -> bool:
        asked = image_pb2.GetUploadRequest(name="projects/demo/images/golden")
        return (await alice.client.images.GetUpload(asked)).committed_bytes >= CHUNK_BYTES

    proxy.hold_requests(after_bytes=HELD_AFTER_BYTES)
    uploading = await alice.start("create", file)
    await wait_for(committed, timeout=WAIT_SECONDS, ignoring=(grpc.aio.AioRpcError,))
    await alice.kill(uploading)
    sent = proxy.request_bytes
    done = await alice.run("create", file, "-o", "json")
    assert done.json["state"] == "STATE_ACTIVE"
    assert "going on with the upload of golden" in done.err
    # What was safe has not travelled again, in no stream; the rest is what TLS and gRPC add.
    streams = 1 + done.err.count("the upload broke")
    assert proxy.request_bytes - sent < streams * (len(DISK) - CHUNK_BYTES + MIB)
    await alice.until(lambda done: done.json["state"] == "STATE_ACTIVE", "show", "golden", "-o", "json")

    def partial() -> list[Path]:
        return list(tmp_path.glob("back.raw.*.partial"))

    def some_has_come() -> bool:
        return any(one.stat().st_size >= CHUNK_BYTES for one in partial())

    proxy.hold_answers(after_bytes=HELD_AFTER_BYTES)
    downloading = await alice.start("download", "golden", target)
    await wait_for(some_has_come, timeout=WAIT_SECONDS)
    await alice.kill(downloading)
    assert not target.exists()
    received = proxy.answer_bytes
    done = await alice.run("download", "golden", target)
    assert done.code == ExitCode.DONE, done.err
    assert target.read_bytes() == DISK
    assert f"SHA-256 {hashlib.sha256(DISK).hexdigest()}" in done.err
    assert proxy.answer_bytes - received < len(DISK) - HOLE_BYTES - CHUNK_BYTES + MIB
    assert partial() == []
    assert (await alice.run("delete", "golden", "--yes")).code == ExitCode.DONE
    await alice.until_gone("golden")


async def test_a_command_that_is_killed_before_it_hears_that_it_is_done_is_told_so_when_it_runs_again(
    alice: Commands, tmp_path: Path
) -> None:
    file = tmp_path / "tiny.raw"
    file.write_bytes(noise(3, TINY_BYTES))
    proxy = alice.proxy
    # All that goes in front of the bytes is less than that.
    proxy.hold_requests(after_bytes=TINY_BYTES // 2)
    uploading = await alice.start("create", file, "--guest-agent")
    await wait_for(lambda: proxy.holds_requests, timeout=WAIT_SECONDS)
    await proxy.restore()
    proxy.freeze_answers()

    async def active() -> bool:
        asked = image_pb2.GetImageRequest(name="projects/demo/images/tiny")
        return (await alice.client.images.GetImage(asked)).state == Image.STATE_ACTIVE

    await wait_for(active, timeout=WAIT_SECONDS)
    await alice.kill(uploading)
    done = await alice.run("create", file, "--guest-agent", "-o", "json")
    assert done.json["state"] == "STATE_ACTIVE"
    # Not the same: the bytes are not known to be, or it says something else of its guests.
    for options in (("--guest-agent", "--no-checksum"), ("--guest-agent", "--rescue"), ()):
        assert (await alice.run("create", file, *options)).code == ExitCode.CONFLICT
    assert (await alice.run("delete", "tiny", "--yes")).code == ExitCode.DONE
    await alice.until_gone("tiny")


async def test_an_image_goes_through_all_commands(alice: Commands, bob: Commands, tmp_path: Path) -> None:
    file = tmp_path / "Debian_12.raw"
    file.write_bytes(DISK)
    made = (await alice.run("upload", file, "--min-memory", 64, "-o", "json")).json
    assert (made["displayName"], made["state"]) == ("debian-12", "STATE_ACTIVE")
    assert made["sha256"] == hashlib.sha256(DISK).hexdigest()
    await alice.until(lambda done: done.json == made, "show", "debian-12", "-o", "json")
    assert (await alice.run("list", "-o", "name")).out.split() == [made["name"]]
    command = ("update", "debian-12", "--min-memory", 128, "--guest-agent", "-o", "json")
    changed = (await alice.run(*command)).json
    assert (changed["minMemoryMib"], changed["guestAgent"]) == ("128", True)
    await alice.until(lambda done: done.json == changed, "show", "debian-12", "-o", "json")
    again = await alice.run("upload", file)
    assert (again.code, "ALREADY_EXISTS" in again.err) == (ExitCode.CONFLICT, True)

    assert (await bob.run("show", made["name"])).code == ExitCode.NOT_FOUND
    assert (await alice.run("share", "debian-12", "other")).code == ExitCode.DONE
    await bob.until(lambda done: done.out.split() == [made["name"]], "list", "--visible", "-o", "name")
    assert (await bob.run("list", "-o", "name")).out == ""
    shared = await bob.run("download", "debian-12", "shared.raw")
    assert shared.code == ExitCode.DONE, shared.err
    assert (tmp_path / "shared.raw").read_bytes() == DISK
    assert (await bob.run("delete", "debian-12", "--yes")).code == ExitCode.NOT_FOUND
    assert (await alice.run("unshare", "debian-12", "other")).code == ExitCode.DONE
    await bob.until_gone(made["name"])
    refused = await bob.run("download", made["name"], "taken-back.raw")
    assert (refused.code, (tmp_path / "taken-back.raw").exists()) == (ExitCode.NOT_FOUND, False)

    packed = await alice.run("download", "debian-12", "disk.qcow2", "--format", "qcow2")
    assert packed.code == ExitCode.DONE, packed.err
    disk = checked((tmp_path / "disk.qcow2").read_bytes(), tmp_path)
    assert disk == DISK
    twin = (await alice.run("create", "disk.qcow2", "--name", "twin", "-o", "json")).json
    assert twin["manifestDigest"] == made["manifestDigest"], "the same disk, whatever file it came in"
    for name in ("debian-12", "twin"):
        assert (await alice.run("delete", name, "--yes")).code == ExitCode.DONE
        await alice.until_gone(name)
    assert (await alice.run("list", "-o", "name")).out == ""
