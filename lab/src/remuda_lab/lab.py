"""A lab as a whole: bring it up, break it, heal it, take it down. Every method works from any process."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from remuda_lab.commands import find
from remuda_lab.errors import LabError
from remuda_lab.fabric import Fabric, start_fabric
from remuda_lab.forward import start_forward
from remuda_lab.host import AGENT_CONFIG, Host, power_off, power_on, start_agent, start_libvirtd
from remuda_lab.host_files import install_host
from remuda_lab.layout import HostPlan, LabPaths, host_number, plan_hosts
from remuda_lab.pki import Authority
from remuda_lab.processes import ProcessRef
from remuda_lab.state import LabState, lab_lock, load_state, save_state
from remuda_lab.sweep import Footprint, assert_nothing_left, footprint, kill_leftovers

_PROGRAMS = (
    "unshare",
    "nsenter",
    "ip",
    "mount",
    "sysctl",
    "libvirtd",
    "virsh",
    "qemu-system-x86_64",
    "qemu-img",
)

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Lab:
    """The lab in one directory. State is read afresh on each call, so several processes may use one lab."""

    paths: LabPaths

    # -- coming and going ------------------------------------------------------------------------

    def up(self, *, hosts: int = 3, tcp: bool = False, tether: int | None = None) -> None:
        """Fabric and hosts, each with a libvirtd that answers. Raises LabError when the lab is up already.

        ``tether``: the read end of a pipe; the whole lab ends when nobody holds the other end any more.
        """
        check_machine()
        with lab_lock(self.paths.lock):
            old = load_state(self.paths)
            if old.fabric is not None and old.fabric.alive():
                raise LabError(f"lab {self.paths.name} is up already; `remuda-lab down` ends it")
            kill_leftovers(self.paths)
            plans = plan_hosts(self.paths.name, hosts)
            authority = Authority.create(self.paths.pki)
            self.paths.shared_pool.mkdir(parents=True, exist_ok=True)
            fabric = start_fabric(self.paths, plans, tether=tether)
            state = LabState(host_count=hosts, fabric=fabric.init, tcp=tcp)
            try:
                save_state(self.paths, state)
                for plan in plans:
                    install_host(self.paths.host(plan.name), plan, plans, authority, tcp=tcp)
                with ThreadPoolExecutor(max_workers=8) as pool:
                    booted = list(pool.map(lambda plan: _boot(self.paths, fabric, plan), plans))
                save_state(self.paths, replace(state, hosts={host.plan.name: host.init for host in booted}))
            except BaseException:
                # Half a lab helps nobody; the files stay for a look at the logs.
                kill_leftovers(self.paths, [fabric.init])
                save_state(self.paths, LabState())
                raise

    def down(self, *, keep_files: bool = False) -> None:
        """End everything, prove that nothing is left, remove the lab's files. Also right for a lab that is
        half up.
        """
        with lab_lock(self.paths.lock):
            state = load_state(self.paths)
            recorded = [
                ref for ref in (state.fabric, *state.hosts.values()) if ref is not None and ref.alive()
            ]
            seen = footprint(recorded)
            kill_leftovers(self.paths, recorded)
            assert_nothing_left(self.paths, seen)
            save_state(self.paths, LabState())
        if not keep_files:
            shutil.rmtree(self.paths.root, ignore_errors=False)

    def is_up(self) -> bool:
        """Whether the fabric runs."""
        fabric = load_state(self.paths).fabric
        return fabric is not None and fabric.alive()

    def footprint(self) -> Footprint:
        """The namespaces of the running lab."""
        return footprint([self.fabric().init, *(self.host(name).init for name in self.running_hosts())])

    # -- its parts -------------------------------------------------------------------------------

    def plans(self) -> tuple[HostPlan, ...]:
        """Every host of the lab, running or not."""
        return plan_hosts(self.paths.name, max(1, self._state().host_count))

    def plan(self, name: str) -> HostPlan:
        """Raises LabError when the lab has no such host."""
        number = host_number(name)
        plans = self.plans()
        if number > len(plans):
            raise LabError(f"this lab has {len(plans)} hosts; there is no {name}")
        return plans[number - 1]

    def fabric(self) -> Fabric:
        """Raises LabError when the lab is down."""
        ref = self._state().fabric
        assert ref is not None
        return Fabric(init=ref)

    def host(self, name: str) -> Host:
        """A running host. Raises LabError when it is off."""
        plan = self.plan(name)
        ref = self._state().hosts.get(name)
        if ref is None or not ref.alive():
            raise LabError(f"{name} is powered off; `remuda-lab boot {name}` starts it")
        return Host(plan=plan, init=ref)

    def running_hosts(self) -> list[str]:
        """Names of the hosts that are powered."""
        return [name for name, ref in sorted(self._state().hosts.items()) if ref.alive()]

    def command(self, where: str, argv: Sequence[str]) -> list[str]:
        """A command that runs ``argv`` in ``fabric`` or in a host."""
        return self.fabric().command(argv) if where == "fabric" else self.host(where).command(argv)

    # -- breaking and healing --------------------------------------------------------------------

    def power_fail(self, name: str) -> None:
        """Pull the plug of a host."""
        with lab_lock(self.paths.lock):
            power_off(self.fabric(), self.host(name))
            state = self._state()
            state.hosts.pop(name)
            save_state(self.paths, state)

    def boot(self, name: str) -> Host:
        """Power a host on again: libvirtd answers when this returns. Raises LabError when it is running."""
        with lab_lock(self.paths.lock):
            if name in self.running_hosts():
                raise LabError(f"{name} is running already")
            host = _boot(self.paths, self.fabric(), self.plan(name))
            state = self._state()
            state.hosts[name] = host.init
            save_state(self.paths, state)
            return host

    def cut(self, name: str, *, management: bool = True, guests: bool = False) -> None:
        """Unplug a host's cables at the fabric's end."""
        self._links(name, "down", management=management, guests=guests)

    def heal(self, name: str) -> None:
        """Plug both cables in again."""
        self._links(name, "up", management=True, guests=True)

    def shape(self, name: str, mbit_per_second: int | None) -> None:
        """Limit what a host sends on the management network, migrations included; None: no limit.

        A token bucket filter: this kernel has no netem, so delay and loss cannot be had.
        """
        host = self.host(name)
        if mbit_per_second is None:
            host.run(["tc", "qdisc", "replace", "dev", "mgmt", "root", "noqueue"])
            return
        rate = f"{mbit_per_second}mbit"
        host.run(
            [
                "tc",
                "qdisc",
                "replace",
                "dev",
                "mgmt",
                "root",
                "tbf",
                "rate",
                rate,
                "burst",
                "256kb",
                "latency",
                "50ms",
            ]
        )

    def send_signal(self, where: str, unit: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal a service (``where`` = fabric), or a host's libvirtd or agent, or ``qemu[:domain]`` of a
        host.
        """
        if unit == "qemu" or unit.startswith("qemu:"):
            self._signal_qemu(where, unit.partition(":")[2] or None, number)
            return
        units = self.fabric().units if where == "fabric" else self.host(where).units
        units.signal(unit, number)

    def forward(self, service: str, target: tuple[str, int], *, port: int) -> int:
        """Let 127.0.0.1:``port`` of the machine (0: any) reach an address of the fabric; return the port."""
        got = start_forward(self.paths, self.fabric(), target=target, port=port)
        with lab_lock(self.paths.lock):
            state = self._state()
            state.forwards[service] = got
            save_state(self.paths, state)
        return got

    def _signal_qemu(self, where: str, domain: str | None, number: signal.Signals) -> None:
        pids = self.host(where).qemu_pids(domain)
        if not pids:
            raise LabError(f"{where} runs no QEMU" + (f" for {domain}" if domain else ""))
        for pid in pids:
            ProcessRef.of(pid).kill(number)

    def _links(self, name: str, what: str, *, management: bool, guests: bool) -> None:
        plan = self.host(name).plan
        links = [plan.management_link] * management + [plan.guest_link] * guests
        self.fabric().ip(*(f"link set {link} {what}" for link in links))

    def _state(self) -> LabState:
        state = load_state(self.paths)
        if state.fabric is None or not state.fabric.alive():
            raise LabError(f"lab {self.paths.name} is not up; `remuda-lab up` starts it")
        return state


def _boot(paths: LabPaths, fabric: Fabric, plan: HostPlan) -> Host:
    host = power_on(paths, fabric, plan)
    start_libvirtd(host)
    # Enabled at boot, once the host has been enrolled.
    if (paths.host(plan.name).etc / AGENT_CONFIG.removeprefix("/etc/")).exists():
        start_agent(host)
    return host


def check_machine() -> None:
    """Raises LabError when no lab can be made here at all: cheap, so asked first."""
    if os.geteuid() != 0:
        raise LabError("the lab makes namespaces and bridges: run it as root")
    for program in _PROGRAMS:
        find(program)
