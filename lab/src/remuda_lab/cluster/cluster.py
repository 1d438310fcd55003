"""A lab with the whole mesh in it: start it, break its services, start them again."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path

import grpc

from remuda_lab.cluster import addresses, settings
from remuda_lab.cluster.client import LabClient, make_client, tokens_file
from remuda_lab.cluster.populate import create_catalogue, create_host, wait_hosts_up
from remuda_lab.cluster.settings import Options
from remuda_lab.cluster.toml_text import Value, render
from remuda_lab.errors import LabError
from remuda_lab.fabric_http import get
from remuda_lab.guest import ensure_guest_image
from remuda_lab.host import AGENT_LOG, FACTS_OVERRIDE, start_agent
from remuda_lab.kvm import Probe, probe_kvm
from remuda_lab.lab import Lab, check_machine
from remuda_lab.layout import SERVICE_ADDRESSES, HostPlan
from remuda_lab.pki import Authority, create_grant_keys, host_identity, service_identity
from remuda_lab.processes import ProcessRef
from remuda_lab.python import console_script
from remuda_lab.state import load_state
from remuda_lab.units import Units, UnitSpec
from remuda_lab.waiting import wait_for

SERVICES = ("api", "scheduler-1", "scheduler-2", "image-store")

FORWARDED = IPv4Address("127.0.0.1")
"""The api is reached here through the forwarder, so its certificate says so."""

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Cluster:
    """The mesh in ``lab``."""

    lab: Lab

    # -- coming ----------------------------------------------------------------------------------

    def up(
        self,
        *,
        hosts: int = 3,
        options: Options | None = None,
        tcp: bool = False,
        tether: int | None = None,
        port: int = 0,
        tell: Tell = lambda _: None,
    ) -> Probe:
        """Everything, from nothing: what an earlier lab of this name left is removed first.

        ``port``: of the api on 127.0.0.1, 0 for any. Returns how KVM was judged. Raises LabError.
        """
        check_machine()
        if self.lab.is_up():
            raise LabError(f"lab {self.lab.paths.name} is up already; `remuda-lab down` ends it")
        self.lab.down()
        image = ensure_guest_image(tell=tell)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="kvm-probe") as pool:
            # Takes seconds where KVM is there and hangs; only the agents wait for it.
            probe = pool.submit(probe_kvm, image)
            self.lab.up(hosts=hosts, tcp=tcp, tether=tether)
            try:
                options = options or Options()
                authority = Authority.create(self.lab.paths.pki)
                client = make_client(self.lab.paths, authority)
                self._write_services(authority, client, options)
                self._start_services()
                self._forward(client, port)
                verdict = probe.result()
                tell(f"{'KVM' if verdict.usable else 'TCG'}: {verdict.reason}")
                self._enrol(authority, replace(options, domain_type=verdict.domain_type))
            except grpc.RpcError as error:
                self.lab.down(keep_files=True)
                raise LabError(f"the api refuses: {error}; see {self.lab.paths.logs}") from error
            except BaseException:
                self.lab.down(keep_files=True)
                raise
        return verdict

    def _write_services(self, authority: Authority, client: LabClient, options: Options) -> None:
        paths = self.lab.paths
        for directory in (
            paths.config,
            paths.logs,
            paths.image_store / "chunks",
            paths.image_store / "scratch",
        ):
            directory.mkdir(parents=True, exist_ok=True)
        paths.etcd.mkdir(mode=0o700, exist_ok=True)
        tokens = paths.config / "tokens.toml"
        tokens.write_text(tokens_file(client))
        grants = create_grant_keys(paths.pki / "grants")
        pairs = {}
        for name, address in SERVICE_ADDRESSES.items():
            reached = (address, FORWARDED) if name == "api" else (address,)
            identity = service_identity(
                name.rstrip("-12"),
                instance=name,
                addresses=reached,
                extra_dns=("localhost",) * (name == "api"),
            )
            pairs[name] = authority.issue(identity, paths.pki / "services" / name)
        documents = {
            "api": settings.api(paths, pairs["api"], options, tokens=tokens, hosts=self.lab.plans()),
            "image-store": settings.image_store(
                paths, pairs["image-store"], options, grant_public_key=grants.certificate
            ),
        }
        for name in addresses.SCHEDULERS:
            documents[name] = settings.scheduler(paths, name, pairs[name], options, grant_key=grants.key)
        for name, document in documents.items():
            (paths.config / f"{name}.toml").write_text(render(document))
        (paths.config / "prometheus.yml").write_text(settings.prometheus())

    def _start_services(self) -> None:
        self._start("etcd", settings.etcd_command(self.lab.paths))
        wait_for("etcd is healthy", lambda: b'"true"' in self._get(addresses.ETCD, "/health"), timeout=30)
        for name in SERVICES:
            self.start(name, wait=False)
        for name in SERVICES:
            self.wait_healthy(name)
        self._start("prometheus", settings.prometheus_command(self.lab.paths))

    def _forward(self, client: LabClient, port: int) -> None:
        lab = self.lab
        ready = replace(
            client,
            port=lab.forward("api", addresses.service("api"), port=port),
            token_port=lab.forward("api-token", addresses.token_address(), port=0),
        )
        lab.forward("prometheus", addresses.PROMETHEUS, port=0)
        ready.write()

    def _enrol(self, authority: Authority, options: Options) -> None:
        with self.client.channel() as channel:
            for plan in self.lab.plans():
                self._write_agent(authority, plan, options, token=create_host(channel, plan))
                start_agent(self.lab.host(plan.name))
            for plan in self.lab.plans():
                self.wait_healthy(plan.name)
            create_catalogue(channel)
            try:
                wait_hosts_up(channel, [plan.name for plan in self.lab.plans()], timeout=60)
            except LabError as error:
                raise LabError(f"{error}\n{self._agents_last_words()}") from error

    def _write_agent(self, authority: Authority, plan: HostPlan, options: Options, *, token: str) -> None:
        etc = self.lab.paths.host(plan.name).etc / settings.HOST_CONFIG.removeprefix("/etc/")
        pair = authority.issue(host_identity(plan.name, plan.uuid, plan.address), etc / "tls")
        shutil.copyfile(authority.certificate, pair.certificate.with_name("ca.pem"))
        config = etc / "agent.toml"
        config.touch(mode=0o600)
        config.write_text(render(settings.agent(plan, options, token=token)))

    def _agents_last_words(self) -> str:
        words = []
        for name in self.lab.running_hosts():
            log = self.lab.paths.host(name).var / AGENT_LOG.removeprefix("/var/")
            last = log.read_text().splitlines()[-3:] if log.exists() else ["no log"]
            words.append(f"{name}: " + "\n  ".join(last))
        return "\n".join(words)

    # -- its parts -------------------------------------------------------------------------------

    @property
    def client(self) -> LabClient:
        """How to talk to the api. Raises LabError when this lab has no services."""
        paths, forwards = self.lab.paths, load_state(self.lab.paths).forwards
        if "api" not in forwards:
            raise LabError(f"lab {paths.name} has no services: it was started with --bare, or is not up")
        return LabClient(
            directory=paths.client,
            ca=paths.pki / "ca.pem",
            port=forwards["api"],
            token_port=forwards["api-token"],
        )

    def metrics(self, name: str) -> str:
        """What a service, or a host's agent, shows at /metrics right now."""
        return self._get(self._metrics_address(name), "/metrics").decode()

    def is_running(self, name: str) -> bool:
        """Whether a service, or a host's agent (by host name), has a process."""
        units, unit = self._unit(name)
        return units.running(unit)

    def pid(self, name: str) -> ProcessRef:
        """The process of a service, ``etcd``, ``prometheus``, or of a host's agent (by host name).

        Raises LabError when it does not run.
        """
        units, unit = self._unit(name)
        status = units.status().get(unit)
        if status is None or status.pid is None:
            raise LabError(f"{name}: {unit} is not running")
        return ProcessRef.of(status.pid)

    # -- breaking and healing --------------------------------------------------------------------

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal a service, or a host's agent (by host name); with SIGKILL and SIGTERM wait for its end."""
        self.pid(name).kill(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            units, unit = self._unit(name)
            wait_for(f"{name} ends", lambda: not units.running(unit), timeout=30, interval=0.02)

    def start(self, name: str, *, wait: bool = True) -> None:
        """Start a service that is down, or a host's agent (by host name); wait until it is healthy."""
        if name in SERVICES:
            config = self.lab.paths.config / f"{name}.toml"
            script = console_script(f"remuda-{name.rstrip('-12')}")
            self._start(name, [script, "--config", str(config)])
        else:
            start_agent(self.lab.host(name))
        if wait:
            self.wait_healthy(name)

    def restart(self, name: str) -> None:
        """SIGKILL and start again."""
        self.kill(name)
        self.start(name)

    def override_facts(self, name: str, facts: Mapping[str, Value]) -> None:
        """Let a host tell these facts instead of its own (the keys are those of the agent's
        `--facts-override`); none: the truth again. Its agent is started anew. Raises LabError when it
        refuses.
        """
        file = self.lab.paths.host(name).etc / FACTS_OVERRIDE.removeprefix("/etc/")
        if facts:
            file.write_text(render(facts))
        else:
            file.unlink(missing_ok=True)
        if self.is_running(name):
            self.kill(name)
        self.start(name)

    def wait_healthy(self, name: str, *, timeout: float = 30.0) -> None:
        """Wait until /healthz of a service or agent says so. Raises WaitTimeout, LabError when it ended."""
        units, unit = self._unit(name)

        def healthy() -> bool:
            return not units.running(unit) or bool(self._get(self._metrics_address(name), "/healthz"))

        wait_for(f"{name} is healthy", healthy, timeout=timeout)
        if not units.running(unit):
            status = units.status()[unit]
            raise LabError(f"{name} ended with status {status.status}; its log: {self._log_tail(name)}")

    def _start(self, name: str, argv: list[str]) -> None:
        log = self.lab.paths.logs / f"{name}.log"
        self.lab.fabric().units.start(UnitSpec(name=name, argv=argv, log=str(log)))

    def _unit(self, name: str) -> tuple[Units, str]:
        if name.startswith("host"):
            return self.lab.host(name).units, "agent"
        if name not in (*SERVICES, "etcd", "prometheus"):
            raise LabError(f"there is no service {name!r}: {', '.join(SERVICES)}, or a host for its agent")
        return self.lab.fabric().units, name

    def _metrics_address(self, name: str) -> tuple[str, int]:
        if name.startswith("host"):
            return addresses.agent_metrics(self.lab.plan(name))
        return addresses.service_metrics(name)

    def _get(self, address: tuple[str, int], path: str) -> bytes:
        return get(self.lab.fabric().init, address, path)

    def _log_tail(self, name: str) -> str:
        log = self.log(name)
        return "\n".join(log.read_text().splitlines()[-5:]) if log.exists() else f"{log} is empty"

    def log(self, name: str) -> Path:
        """The log of a service or of a host's agent, as the machine sees it."""
        if name.startswith("host"):
            return self.lab.paths.host(name).var / AGENT_LOG.removeprefix("/var/")
        return self.lab.paths.logs / f"{name}.log"
