"""One host: network, mount, UTS, IPC and pid namespaces inside the fabric, with its own libvirtd.

The pid namespace makes a power failure honest: killing its pid 1 takes libvirtd, every QEMU and the agent at
once, and /run (a tmpfs) is lost, while /etc and /var stay, as on a machine.
"""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from remuda_lab.commands import run
from remuda_lab.errors import CommandFailed, WaitTimeout
from remuda_lab.fabric import Fabric, ip_batch, supervisor_command
from remuda_lab.host_files import setup_commands
from remuda_lab.layout import HostPlan, LabPaths, mac_of
from remuda_lab.namespaces import HOST_KINDS, enter_command, unshare_command, wait_for_child
from remuda_lab.processes import ProcessRef, command_line, processes_in_namespace
from remuda_lab.python import console_script
from remuda_lab.units import Units, UnitSpec
from remuda_lab.waiting import wait_for

LIBVIRT_SOCKET = "/run/libvirt/libvirt-sock"
AGENT_CONFIG = "/etc/remuda/agent.toml"
FACTS_OVERRIDE = "/etc/remuda/facts.toml"
"""What the agent shall tell of its host instead of the truth, where there is such a file."""
AGENT_LOG = "/var/log/remuda/agent.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A running host, by its pid 1."""

    plan: HostPlan
    init: ProcessRef

    @property
    def units(self) -> Units:
        """libvirtd and the agent."""
        return Units(init=self.init, where=self.plan.name)

    @property
    def libvirt_uri(self) -> str:
        """libvirt of this host from the machine; works while the host's network is cut."""
        return f"qemu+unix:///system?socket=/proc/{self.init.pid}/root{LIBVIRT_SOCKET}"

    def command(self, argv: Sequence[str]) -> list[str]:
        """A command that runs ``argv`` inside the host."""
        return enter_command(self.init.pid, HOST_KINDS, argv)

    def run(self, argv: Sequence[str], *, timeout: float = 60.0, stdin: str | None = None) -> str:
        """Run to the end, return standard output. Raises CommandFailed."""
        return run(self.command(argv), timeout=timeout, stdin=stdin)

    def virsh(self, *arguments: str, timeout: float = 60.0) -> str:
        """virsh inside the host. Raises CommandFailed."""
        return self.run(["virsh", "-q", "-c", "qemu:///system", *arguments], timeout=timeout).strip()

    def qemu_pids(self, domain: str | None = None) -> list[int]:
        """The machine's pids of this host's QEMUs, or of the one that runs ``domain``."""
        found = []
        for pid in processes_in_namespace(self.init.pid):
            argv = command_line(pid)
            if argv and "qemu-system" in argv[0] and (domain is None or _guest_name(argv) == domain):
                found.append(pid)
        return found


def power_on(paths: LabPaths, fabric: Fabric, plan: HostPlan) -> Host:
    """Boot a host whose files are laid down, up to its own pid 1 and network; units come after."""
    own = paths.host(plan.name)
    own.supervisor_config.write_text(json.dumps({"setup": setup_commands(own, plan, paths.shared_pool)}))
    supervisor = supervisor_command(paths, name=plan.name, config=own.supervisor_config)
    fabric.units.start(
        UnitSpec(name=plan.name, argv=unshare_command(HOST_KINDS, supervisor), log=str(own.log))
    )
    holder = wait_for(
        f"{plan.name} is powered", lambda: fabric.units.status()[plan.name].pid, timeout=10, interval=0.01
    )
    init = wait_for_child(holder, alive=lambda: fabric.units.running(plan.name), log=own.log)
    host = Host(plan=plan, init=init)
    host.units.wait_ready()
    _plug(fabric, host)
    return host


def start_libvirtd(host: Host, *, timeout: float = 20.0) -> None:
    """Start libvirtd, restarted like systemd would when it crashes, and wait until it answers. ``timeout``
    in seconds.
    """
    host.units.start(
        UnitSpec(
            name="libvirtd",
            argv=["libvirtd", "--listen"],
            log="/var/log/libvirt/libvirtd.out",
            restart_seconds=0.2,
        )
    )
    wait_libvirtd(host, timeout=timeout)


def wait_libvirtd(host: Host, *, timeout: float = 20.0) -> None:
    """Wait until libvirtd answers. Raises WaitTimeout with virsh's last words."""
    try:
        wait_for(
            f"libvirtd of {host.plan.name} answers", lambda: host.virsh("uri", timeout=5), timeout=timeout
        )
    except WaitTimeout as error:
        said = host.run(
            ["sh", "-c", "tail -n 5 /var/log/libvirt/libvirtd.log /var/log/libvirt/libvirtd.out; true"]
        )
        raise WaitTimeout(f"{error}\n{said}") from error


def start_agent(host: Host) -> None:
    """Start the host's agent. Not restarted when it ends: who kills it wants to see what happens then."""
    argv = [console_script("remuda-agent"), "--config", AGENT_CONFIG]
    if Path(f"/proc/{host.init.pid}/root{FACTS_OVERRIDE}").exists():
        argv += ["--facts-override", FACTS_OVERRIDE]
    host.units.start(UnitSpec(name="agent", argv=argv, log=AGENT_LOG))


def power_off(fabric: Fabric, host: Host) -> None:
    """A power failure: every process of the host dies at once, its cables are unplugged, /run is lost."""
    host.init.kill(signal.SIGKILL)
    # unshare ends only after the kernel has emptied the pid namespace.
    wait_for(
        f"{host.plan.name} is dead",
        lambda: not fabric.units.running(host.plan.name),
        timeout=10,
        interval=0.01,
    )
    for link in (host.plan.management_link, host.plan.guest_link):
        try:
            fabric.ip(f"link delete {link}")
        except CommandFailed as error:
            # The kernel removes a veth with the namespace of its other end, sooner or later than we do.
            if "Cannot find device" not in error.output:
                raise


def _plug(fabric: Fabric, host: Host) -> None:
    plan, pid, mac = host.plan, host.init.pid, mac_of(host.plan.address)
    fabric.ip(
        f"link add {plan.management_link} type veth peer name mgmt address {mac} netns {pid}",
        f"link add {plan.guest_link} type veth peer name uplink netns {pid}",
        f"link set {plan.management_link} master mgmt up",
        f"link set {plan.guest_link} master guests up",
    )
    ip_batch(
        pid,
        (
            "link set lo up",
            f"address add {plan.address}/24 dev mgmt",
            "link set mgmt up",
            "link add br0 type bridge forward_delay 0 mcast_snooping 0",
            "link set uplink master br0 up",
            "link set br0 up",
        ),
    )


def _guest_name(argv: Sequence[str]) -> str | None:
    # libvirt: -name guest=NAME,debug-threads=on
    for flag, value in itertools.pairwise(argv):
        if flag == "-name":
            return value.removeprefix("guest=").split(",")[0]
    return None
