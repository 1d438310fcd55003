"""An agent's process: what its probes leave when it is killed, and facts that it may not override."""

import asyncio
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from remuda.agent.v1 import probe_pb2 as pb
from remuda.agent.v1.probe_pb2_grpc import ProbeServiceStub
from remuda_core.rpc.channel import open_channel
from remuda_core.testing.etcd import free_ports
from remuda_core.testing.waiting import wait_for

AGENT = Path(sys.executable).with_name("remuda-agent")
CONTENT = b"sixteen bytes or more"

CONFIG = """
listen = "127.0.0.1:{port}"
name = "a"
host_uuid = "{uuid}"
schedulers = ["127.0.0.1:1"]
hypervisor = "fake"
state_dir = "{directory}/state"
console_dir = "{directory}/consoles"
drain_seconds = 0.2
lab = {lab}
[[pools]]
name = "shared"
path = "{directory}/pool"
[migration]
address = "127.0.0.1"
port_min = {migration}
port_max = {migration}
"""


class Agent:
    """Its files; `running` starts a process on them."""

    def __init__(self, directory: Path, *, lab: bool = False) -> None:
        self.directory = directory
        self.port, self.migration_port = free_ports(2)
        (directory / "pool").mkdir()
        (directory / "state").mkdir()
        self.config = directory / "agent.toml"
        self.config.write_text(
            CONFIG.format(
                port=self.port,
                uuid=uuid.uuid4(),
                directory=directory,
                lab=str(lab).lower(),
                migration=self.migration_port,
            )
        )

    def argv(self, *arguments: str) -> list[str]:
        return [str(AGENT), "--config", str(self.config), *arguments]

    @contextmanager
    def running(self, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
        log = self.directory / "log"
        with (
            log.open("ab") as out,
            subprocess.Popen(self.argv(*arguments), stderr=out, stdout=out) as process,
        ):
            try:
                yield process
            finally:
                process.kill()

    @property
    def nonces(self) -> list[Path]:
        return list((self.directory / "pool").glob(".remuda-probe-*"))


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


async def test_an_agent_that_is_killed_in_the_middle_of_probes_leaves_nothing(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    async with open_channel(
        f"127.0.0.1:{agent.port}", None, insecure_identity="service/scheduler"
    ) as channel:
        probes = ProbeServiceStub(channel)
        with agent.running() as process:
            await asyncio.wait_for(channel.channel_ready(), 60)
            listening = probes.Listen(pb.ListenRequest(nonce=CONTENT, patience=Duration(seconds=30)))
            place = await listening.read()
            assert isinstance(place, pb.ListenResponse)
            name = str(uuid.uuid4())
            await probes.WriteNonce(pb.WriteNonceRequest(pool="shared", name=name, content=CONTENT))
            assert place.port == agent.migration_port
            assert not is_free(place.port)
            process.kill()
            process.wait(timeout=10)
        assert is_free(agent.migration_port)
        assert agent.nonces, "a crash cannot remove it"
        with agent.running():
            await asyncio.wait_for(channel.channel_ready(), 60)
            await wait_for(lambda: not agent.nonces, timeout=60, last_status=lambda: f"{agent.nonces}")


def test_an_agent_outside_a_lab_refuses_to_override_its_facts(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    file = tmp_path / "facts.toml"
    file.write_text('cpu = "incompatible"\n')
    done = subprocess.run(
        agent.argv("--facts-override", str(file)), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"remuda-agent: --facts-override {file} makes a host lie")
    assert "lab = true" in done.stderr


@pytest.mark.parametrize("flag", ["--facts-override", "--facts_override"])
async def test_an_agent_of_a_lab_answers_what_the_file_says(tmp_path: Path, flag: str) -> None:
    agent = Agent(tmp_path, lab=True)
    file = tmp_path / "facts.toml"
    file.write_text("qemu_version = 6002000\n")
    with agent.running(f"{flag}={file}"):
        async with open_channel(
            f"127.0.0.1:{agent.port}", None, insecure_identity="service/scheduler"
        ) as channel:
            await asyncio.wait_for(channel.channel_ready(), 60)
            request = pb.AssessGuestRequest(guest=pb.GuestFacts(machine_type="pc-q35-7.2"))
            answer = await ProbeServiceStub(channel).AssessGuest(request)
    assert answer.qemu_version == 6_002_000
    assert list(answer.overridden) == ["qemu_version"]
