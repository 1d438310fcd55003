"""The fabric: one network, mount and pid namespace that holds the bridges, the services, and every host.

Nothing is made in the machine's own network. The fabric's pid 1 is the one handle on everything: when it
dies, every process, interface and mount of the lab dies with it, and only files are left.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from remuda_lab.commands import run
from remuda_lab.layout import (
    FABRIC_GUEST_ADDRESS,
    FABRIC_MANAGEMENT_ADDRESS,
    GUEST_BRIDGE,
    MANAGEMENT_BRIDGE,
    SERVICE_ADDRESSES,
    HostPlan,
    LabPaths,
    hosts_file,
    mac_of,
)
from remuda_lab.namespaces import FABRIC_KINDS, enter_command, spawn_holder
from remuda_lab.processes import ProcessRef
from remuda_lab.python import module_command
from remuda_lab.units import Units


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """A running fabric, by its pid 1."""

    init: ProcessRef

    @property
    def units(self) -> Units:
        """The services: etcd, api, schedulers, image-store, prometheus, and each host's power supply."""
        return Units(init=self.init, where="fabric")

    def command(self, argv: Sequence[str]) -> list[str]:
        """A command that runs ``argv`` inside the fabric."""
        return enter_command(self.init.pid, FABRIC_KINDS, argv)

    def run(self, argv: Sequence[str], *, timeout: float = 60.0, stdin: str | None = None) -> str:
        """Run to the end, return standard output. Raises CommandFailed."""
        return run(self.command(argv), timeout=timeout, stdin=stdin)

    def popen(self, argv: Sequence[str], **options: object) -> subprocess.Popen[str]:
        """Start inside the fabric; the caller owns the process."""
        return subprocess.Popen(self.command(argv), text=True, **options)  # type: ignore[call-overload, no-any-return]

    def ip(self, *lines: str) -> None:
        """Feed lines to ``ip -batch`` in the fabric's network. Raises CommandFailed."""
        ip_batch(self.init.pid, lines)


def ip_batch(init: int, lines: Sequence[str]) -> None:
    """``ip`` commands, one per line, in the network of process ``init``; pids in them are the machine's."""
    run(enter_command(init, ("net",), ["ip", "-batch", "-"]), stdin="\n".join(lines) + "\n", timeout=20)


def start_fabric(paths: LabPaths, hosts: tuple[HostPlan, ...], *, tether: int | None = None) -> Fabric:
    """Make the namespaces and bridges. With ``tether``, the read end of a pipe, the fabric ends when the
    other end closes.
    """
    paths.fabric.mkdir(parents=True, exist_ok=True)
    names = paths.fabric / "hosts"
    names.write_text(hosts_file(hosts))
    config = paths.fabric / "supervisor.json"
    config.write_text(json.dumps({"setup": setup_commands(names)}))
    argv = supervisor_command(paths, name="fabric", config=config)
    if tether is not None:
        argv += ["--tether", str(tether)]
    log = paths.fabric / "supervisor.log"
    init = spawn_holder(FABRIC_KINDS, argv, log=log, pass_fds=() if tether is None else (tether,))
    fabric = Fabric(init=init)
    fabric.units.wait_ready()
    return fabric


def setup_commands(names: Path) -> list[list[str]]:
    """What the fabric's pid 1 does first."""
    commands = [
        ["mount", "--bind", str(names), "/etc/hosts"],
        ["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"],
        ["ip", "link", "set", "lo", "up"],
    ]
    for bridge, address in (
        (MANAGEMENT_BRIDGE, FABRIC_MANAGEMENT_ADDRESS),
        (GUEST_BRIDGE, FABRIC_GUEST_ADDRESS),
    ):
        commands += [
            # forward_delay 0: a cable that is plugged in carries frames at once, so a migrated guest is
            # heard at once.
            [
                *("ip", "link", "add", bridge, "address", mac_of(address)),
                *("type", "bridge", "forward_delay", "0", "mcast_snooping", "0"),
            ],
            ["ip", "address", "add", f"{address}/24", "dev", bridge],
            ["ip", "link", "set", bridge, "up"],
        ]
    # An address that a deleted guest had is soon another's, with another MAC: the fabric must not believe its
    # old neighbour for half a minute.
    neighbours = {
        "base_reachable_time_ms": 3000,
        "delay_first_probe_time": 1,
        "ucast_solicit": 2,
        "retrans_time_ms": 250,
    }
    for key, value in neighbours.items():
        commands.append(["sysctl", "-q", "-w", f"net.ipv4.neigh.{GUEST_BRIDGE}.{key}={value}"])
    for address in SERVICE_ADDRESSES.values():
        if address != FABRIC_MANAGEMENT_ADDRESS:
            commands.append(["ip", "address", "add", f"{address}/24", "dev", MANAGEMENT_BRIDGE])
    # Where br_netfilter is loaded, bridged frames would pass iptables; where it is not, the key does not
    # exist.
    commands.append(["sysctl", "-q", "-e", "-w", "net.bridge.bridge-nf-call-iptables=0"])
    return commands


def supervisor_command(paths: LabPaths, *, name: str, config: Path) -> list[str]:
    """The command line of a pid 1; ``--lab`` is what a sweep recognises."""
    return module_command("supervisor", "--lab", str(paths.root), "--name", name, "--config", str(config))
