"""Another host's libvirt, opened as the migration's own connection will be."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import libvirt

from remuda_agent.bounded_calls import BoundedCalls
from remuda_agent.hypervisor.facts import check_peer
from remuda_agent.hypervisor.libvirt.connection import failed
from remuda_agent.hypervisor.model import hypervisor_error


def peer_uri(hostname: str, transport: str) -> str:
    """What a source's libvirtd connects to."""
    return f"qemu+{transport}://{hostname}/system"


class Peers:
    """virConnectOpen hangs for minutes when the other host drops packets, and cannot be interrupted."""

    def __init__(self, *, open_uri: Callable[[str], Any] = libvirt.open) -> None:
        self._open_uri = open_uri
        self._calls = BoundedCalls("libvirt-peer")

    async def hostname(self, hostname: str, *, transport: str, patience: float) -> str:
        """See Probes.open_peer."""
        check_peer(hostname, transport)
        uri = peer_uri(hostname, transport)
        try:
            return await self._calls.call(lambda: self._ask(uri), seconds=patience)
        except libvirt.libvirtError as error:
            raise failed(error) from error
        except TimeoutError as error:
            raise hypervisor_error(f"{uri} did not answer within {patience:g} s") from error

    def _ask(self, uri: str) -> str:
        """In a thread; closes what it opened even when nobody waits for it any more."""
        connection = self._open_uri(uri)
        try:
            return str(connection.getHostname())
        finally:
            with suppress(libvirt.libvirtError):
                connection.close()
