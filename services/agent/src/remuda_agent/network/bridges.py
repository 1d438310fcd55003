"""Physical networks and the bridges that stand for them on this host.

Linux shows a bridge as /sys/class/net/NAME/bridge; nothing more is needed to know that it is there, so no
netlink library is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from remuda_core.errors import Reason, RemudaError

SYS_CLASS_NET = Path("/sys/class/net")


class Bridges:
    """``mapping``: name of a physical network -> name of a bridge."""

    def __init__(self, mapping: Mapping[str, str], *, sys_class_net: Path = SYS_CLASS_NET) -> None:
        self._mapping = dict(mapping)
        self._net = sys_class_net

    def missing(self) -> dict[str, str]:
        """What is configured and not there now."""
        return {name: bridge for name, bridge in self._mapping.items() if not self.exists(bridge)}

    def physical_networks(self) -> list[str]:
        """Those whose bridge exists now, sorted."""
        return sorted(name for name, bridge in self._mapping.items() if self.exists(bridge))

    def exists(self, bridge: str) -> bool:
        """Whether there is a bridge of that name; a plain interface is none."""
        return (self._net / bridge / "bridge").is_dir()

    def bridge(self, physical_network: str) -> str:
        """Raises STEP_FAILED, naming what is missing: the mapping or the bridge."""
        bridge = self._mapping.get(physical_network)
        if bridge is None:
            raise RemudaError(
                Reason.STEP_FAILED, f"this host has no bridge configured for network {physical_network!r}"
            )
        if not self.exists(bridge):
            raise RemudaError(
                Reason.STEP_FAILED, f"bridge {bridge} of network {physical_network!r} is not on this host"
            )
        return bridge

    def check(self, physical_networks: Iterable[str]) -> None:
        """Raises STEP_FAILED for the first that has no bridge here."""
        self.bridges(physical_networks)

    def bridges(self, physical_networks: Iterable[str]) -> dict[str, str]:
        """The bridge of each. Raises STEP_FAILED for the first that has none here."""
        return {name: self.bridge(name) for name in physical_networks}


class PretendedBridges(Bridges):
    """Of a host that runs no guests: every bridge that is configured is there."""

    def exists(self, bridge: str) -> bool:
        return True
