"""Names, addresses and paths of a lab: pure data, the same for everybody who asks."""

from __future__ import annotations

import os
import re
import sys
import uuid
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from remuda_lab.errors import LabError

MANAGEMENT = IPv4Network("10.77.0.0/24")
GUESTS = IPv4Network("10.78.0.0/24")
FABRIC_MANAGEMENT_ADDRESS = IPv4Address("10.77.0.1")
FABRIC_GUEST_ADDRESS = IPv4Address("10.78.0.1")
MANAGEMENT_BRIDGE = "mgmt"
GUEST_BRIDGE = "guests"

# One address per service, so that a test can cut one of them off.
SERVICE_ADDRESSES = {
    "api": IPv4Address("10.77.0.1"),
    "scheduler-1": IPv4Address("10.77.0.2"),
    "scheduler-2": IPv4Address("10.77.0.3"),
    "image-store": IPv4Address("10.77.0.4"),
}

LOCAL_POOL = "/var/lib/remuda-pools/local"
SHARED_POOL = "/var/lib/remuda-pools/shared"

_NAMES = uuid.UUID("6f1d3c52-6f2b-4a51-9d1e-5e0a2c7d4b10")
_HOST_NAME = re.compile(r"host([1-9][0-9]?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPlan:
    """One host before it exists."""

    number: int
    uuid: str
    shares_pool: bool

    @property
    def name(self) -> str:
        return f"host{self.number}"

    @property
    def address(self) -> IPv4Address:
        return IPv4Address("10.77.0.10") + self.number

    @property
    def management_link(self) -> str:
        """The fabric's end of the host's management cable."""
        return f"m-{self.name}"

    @property
    def guest_link(self) -> str:
        """The fabric's end of the host's guest cable."""
        return f"g-{self.name}"


def mac_of(address: IPv4Address) -> str:
    """A locally administered MAC address of its own for every address of the lab, the same after every boot.

    A bridge without one takes the lowest of its ports: when the host that owns that port loses power, the
    bridge's changes, and all neighbours talk to the old one for half a minute.
    """
    return "02:00:" + address.packed.hex(":")


def plan_hosts(lab: str, count: int) -> tuple[HostPlan, ...]:
    """``count`` hosts (1 to 99); the first two share a pool. A host's UUID stays the same over restarts of
    the lab.
    """
    if not 1 <= count <= 99:
        raise LabError(f"a lab has 1 to 99 hosts, not {count}")
    return tuple(
        HostPlan(number=n, uuid=str(uuid.uuid5(_NAMES, f"{lab}/host{n}")), shares_pool=n <= 2)
        for n in range(1, count + 1)
    )


def host_number(name: str) -> int:
    """``host3`` -> 3. Raises LabError for anything else."""
    match = _HOST_NAME.fullmatch(name)
    if match is None:
        raise LabError(f"{name!r} is not a host of the lab; hosts are host1, host2, ...")
    return int(match[1])


def hosts_file(hosts: tuple[HostPlan, ...]) -> str:
    """An /etc/hosts in which every name of the lab resolves, a host's own to its management address.

    Debian's installer gives the own name to 127.0.1.1; a migration peer that believed it would talk to
    itself.
    """
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost"]
    lines += [f"{address} {name}" for name, address in SERVICE_ADDRESSES.items()]
    lines += [f"{host.address} {host.name}" for host in hosts]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPaths:
    """What a host keeps over a power failure: its /etc and /var, and what the lab knows of it."""

    root: Path

    @property
    def etc(self) -> Path:
        return self.root / "etc"

    @property
    def var(self) -> Path:
        return self.root / "var"

    @property
    def supervisor_config(self) -> Path:
        return self.root / "supervisor.json"

    @property
    def log(self) -> Path:
        return self.root / "supervisor.log"

    @property
    def state(self) -> Path:
        return self.var / "lib" / "remuda"

    @property
    def local_pool(self) -> Path:
        return self.var / LOCAL_POOL.removeprefix("/var/")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabPaths:
    """Everything a lab writes is below ``root``."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def state(self) -> Path:
        return self.root / "state.json"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def fabric(self) -> Path:
        return self.root / "fabric"

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def shared_pool(self) -> Path:
        return self.root / "shared-pool"

    @property
    def logs(self) -> Path:
        """Of everything that runs in the fabric; a host's are in its own /var/log."""
        return self.root / "logs"

    @property
    def config(self) -> Path:
        """Configuration files of the services; an agent's is in its host's /etc."""
        return self.root / "config"

    @property
    def etcd(self) -> Path:
        return self.root / "etcd"

    @property
    def image_store(self) -> Path:
        return self.root / "image-store"

    @property
    def client(self) -> Path:
        """Users' certificates, the token, the CLI's context file."""
        return self.root / "client"

    def host(self, name: str) -> HostPaths:
        return HostPaths(root=self.root / "hosts" / name)


def lab_paths(name: str = "default") -> LabPaths:
    """``$REMUDA_LAB_DIR/<name>``, else ``.lab/<name>`` below the current directory.

    Raises LabError for a name that is no plain word, and for a place that a host's own /etc, /run or /var
    would hide.
    """
    if re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", name) is None:
        raise LabError(f"{name!r} is no name for a lab: small letters, digits and dashes")
    base = Path(os.environ.get("REMUDA_LAB_DIR") or Path.cwd() / ".lab")
    root = (base / name).resolve()
    for path in (root, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()):
        for hidden in ("/etc", "/run"):
            if path.is_relative_to(hidden):
                raise LabError(f"{path}: the lab's hosts have a {hidden} of their own; use another directory")
    for prefix in (Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve(), Path(__file__).resolve()):
        if prefix.is_relative_to("/var"):
            raise LabError(f"{prefix}: the lab's hosts have a /var of their own; install Remuda elsewhere")
    return LabPaths(root=root)
