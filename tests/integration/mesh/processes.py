"""A whole mesh on loopback as separate processes: etcd, api, two schedulers, an image store, fake agents."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Literal

from remuda_agent.hypervisor import EventKind
from remuda_agent.hypervisor.fake import DEFAULT_CAPABILITIES, FakeFabric, FakeHypervisor
from remuda_core.ids import HostId, InstanceId
from remuda_core.rpc.tls import Tls
from remuda_core.testing.etcd import EtcdServer, free_ports
from remuda_lab.cluster.toml_text import Value, render
from remuda_lab.pki import (
    Authority,
    Identity,
    KeyPair,
    create_grant_keys,
    host_identity,
    service_identity,
    user_identity,
)

LOOPBACK = IPv4Address("127.0.0.1")
HOST_NAMES = ("alpha", "beta", "gamma")
FAKE_HOSTS: dict[str, Value] = {name: f"192.0.2.{number}" for number, name in enumerate(HOST_NAMES, start=1)}
"""Their names are in no resolver, and preflight wants to know that they do not lead to loopback."""
SHARING = ("alpha", "beta")
"""Hosts that mount the shared pool."""
TTL_SECONDS = 2
GUEST_MIB = 64
HOST_MIB = 2048


@dataclass(kw_only=True)
class Process:
    """One service, started from its console script as an operator would."""

    name: str
    script: str
    config: Path
    log: Path
    popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.running:
            raise RuntimeError(f"{self.name} runs already")
        command = [str(Path(sys.executable).with_name(self.script)), "--config", str(self.config)]
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def running(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    def kill(self) -> None:
        """SIGKILL: no goodbye to anybody."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM. Returns the exit status."""
        return self._end(signal.SIGTERM)

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""

    def _end(self, how: signal.Signals) -> int:
        popen, self.popen = self.popen, None
        if popen is None:
            return 0
        popen.send_signal(how)
        try:
            return popen.wait(20)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()
            raise AssertionError(f"{self.name} did not end:\n{self.tail()}") from None


@dataclass(frozen=True, kw_only=True)
class HostPlan:
    """A fake host; its UUID and its ports stay over restarts."""

    name: str
    uuid: HostId
    endpoint: str
    directory: Path

    @property
    def pool(self) -> Path:
        return self.directory / "pool"


@dataclass(kw_only=True)
class Mesh:
    """Configuration and processes. What clients do with it is in conftest.py."""

    directory: Path
    etcd: EtcdServer
    prefix: str
    authority: Authority | None = None
    """With it everything speaks mutual TLS."""
    processes: dict[str, Process] = field(default_factory=dict)
    endpoints: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)
    hosts: dict[str, HostPlan] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        names = ("api", "scheduler-1", "scheduler-2", "image-store", *HOST_NAMES)
        ports = iter(free_ports(2 * len(names)))
        for name in names:
            self.endpoints[name] = f"{LOOPBACK}:{next(ports)}"
            self.metrics[name] = f"{LOOPBACK}:{next(ports)}"
        for name in HOST_NAMES:
            self.hosts[name] = HostPlan(
                name=name,
                uuid=HostId(str(uuid.uuid4())),
                endpoint=self.endpoints[name],
                directory=self.directory / name,
            )
        self._plan_services()

    @property
    def world(self) -> Path:
        """What all fake hypervisors share."""
        return self.directory / "world.json"

    @property
    def shared_pool(self) -> Path:
        return self.directory / "shared"

    @property
    def schedulers(self) -> tuple[str, str]:
        return ("scheduler-1", "scheduler-2")

    def start(self, *names: str) -> None:
        """Those that do not run; all of them when none is named."""
        for name in names or self.processes:
            if not self.processes[name].running:
                self.processes[name].start()

    def stop(self) -> None:
        """In any state it may be in."""
        for process in self.processes.values():
            if process.popen is not None:
                process.popen.kill()
                process.popen.wait()
                process.popen = None

    def plan_host(self, name: str, token: str) -> None:
        """The agent of a host that was registered."""
        plan = self.hosts[name]
        console = plan.directory / "console"
        for path in (plan.pool, self.shared_pool, console):
            path.mkdir(parents=True, exist_ok=True)
        boot = plan.directory / "boot_id"
        boot.write_text(f"{uuid.uuid4()}\n")
        pools: list[Value] = [{"name": "local", "path": plan.pool}]
        if name in SHARING:
            pools.append({"name": "shared", "path": self.shared_pool, "shared": True})
        self._plan(
            name,
            "remuda-agent",
            host_identity(name, plan.uuid, LOOPBACK),
            {
                "name": name,
                "host_uuid": plan.uuid,
                "advertise": plan.endpoint,
                "schedulers": [self.endpoints[one] for one in self.schedulers],
                "image_stores": [self.endpoints["image-store"]],
                "state_dir": plan.directory / "state",
                "console_dir": console,
                "hypervisor": "fake",
                "fake_world": self.world,
                "fake_hosts": FAKE_HOSTS,
                "boot_id_file": boot,
                "enrolment_token": token,
                # What is left is what a host offers.
                "reserved_memory_mib": DEFAULT_CAPABILITIES.memory_mib - HOST_MIB,
                "pools": pools,
                "bridges": {"physnet": "br0"},
            },
        )

    def identity(self, identity: Identity) -> Tls | None:
        """Certificate, key and CA as a client uses them."""
        pair = self._issue(identity)
        if pair is None or self.authority is None:
            return None
        return Tls(
            ca=self.authority.certificate.read_bytes(),
            cert=pair.certificate.read_bytes(),
            key=pair.key.read_bytes(),
        )

    def user(self, name: str, *roles: str) -> Tls | None:
        return self.identity(user_identity(name, roles))

    def log_tails(self) -> str:
        return "\n".join(f"--- {name}\n{process.tail()}" for name, process in self.processes.items())

    def domains(self) -> dict[str, set[str]]:
        """Instances that the fake hypervisors hold, by host."""
        if not self.world.exists():
            return {}
        hosts = json.loads(self.world.read_text())["hosts"]
        return {name: set(host["domains"]) for name, host in hosts.items()}

    def shows(self, host: str, instance: str, *, paused: bool) -> bool:
        """The host has a live copy, paused or not."""
        with self._fabric().transaction() as world:
            domain = world.hosts[host].domains.get(InstanceId(instance))
            return domain is not None and domain.live is not None and domain.paused is paused

    def act(self, host: str, what: Literal["pause", "shutdown", "kill"], instance: str) -> None:
        """What a person or a guest does at a hypervisor, behind everybody's back."""
        fabric, uid = self._fabric(), InstanceId(instance)
        match what:
            case "pause":
                with fabric.transaction() as world:
                    domain = world.domain(host, uid)
                    domain.paused, domain.reason = True, "user"
                    world.tell(host, EventKind.SUSPENDED, uid, "paused")
            case "shutdown":
                fabric.power_button_inside(host, uid)
            case "kill":
                fabric.kill_qemu(host, uid)

    async def hasten(self, host: str, instance: str) -> None:
        """The migration away from the host is held up no longer."""
        source = FakeHypervisor(self._fabric(), host)
        await source.set_bandwidth(InstanceId(instance), mib_per_second=4000, post_copy=False)

    def _fabric(self) -> FakeFabric:
        return FakeFabric(file=self.world)

    def http(self, service: str, path: str) -> str:
        """From its management address, empty when nobody answers there."""
        try:
            with urllib.request.urlopen(f"http://{self.metrics[service]}{path}", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    def directories(self) -> set[str]:
        """Instance directories on all pools, as <pool>/<uuid>."""
        pools = {name: plan.pool for name, plan in self.hosts.items()} | {"shared": self.shared_pool}
        return {
            f"{name}/{path.name}" for name, pool in pools.items() for path in (pool / "instances").glob("*")
        }

    def _plan_services(self) -> None:
        keys = create_grant_keys(self.directory / "grants")
        store: dict[str, Value] = {
            "endpoints": [self.etcd.endpoint],
            "prefix": self.prefix,
        }
        self._plan(
            "api",
            "remuda-api",
            service_identity("api", instance="api", addresses=[LOOPBACK]),
            {"image_stores": [self.endpoints["image-store"]], "etcd": store},
        )
        for name in self.schedulers:
            self._plan(
                name,
                "remuda-scheduler",
                service_identity("scheduler", instance=name, addresses=[LOOPBACK]),
                {
                    "name": name,
                    "advertise": self.endpoints[name],
                    "election_ttl_seconds": TTL_SECONDS,
                    "heartbeat_interval_ms": 250,
                    "unreachable_after_seconds": 3.0,
                    "patience_seconds": 5.0,
                    "grant_key": keys.key,
                    "etcd": store,
                },
            )
        self._plan(
            "image-store",
            "remuda-image-store",
            service_identity("image-store", instance="image-store", addresses=[LOOPBACK]),
            {
                "backend": f"file://{self.directory / 'images'}",
                "scratch_dir": self.directory / "scratch",
                "grant_public_key": keys.certificate,
                "etcd": store,
            },
        )
        for path in (self.directory / "images", self.directory / "scratch"):
            path.mkdir(exist_ok=True)

    def _plan(self, name: str, script: str, identity: Identity, settings: Mapping[str, Value]) -> None:
        pair = self._issue(identity)
        tls: dict[str, Value] = {}
        if pair is not None and self.authority is not None:
            tls["tls"] = {"ca": self.authority.certificate, "cert": pair.certificate, "key": pair.key}
        config = self.directory / f"{name}.toml"
        common: dict[str, Value] = {
            "listen": self.endpoints[name],
            "metrics_listen": self.metrics[name],
            "log_level": "debug" if os.environ.get("REMUDA_TEST_DEBUG") else "info",
            "drain_seconds": 1.0,
        }
        config.write_text(render({**common, **settings, **tls}))
        log = self.directory / f"{name}.log"
        self.processes[name] = Process(name=name, script=script, config=config, log=log)

    def _issue(self, identity: Identity) -> KeyPair | None:
        if self.authority is None:
            return None
        return self.authority.issue(identity, self.directory / "pki" / identity.common_name)
