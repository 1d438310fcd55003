"""What a guest says of itself, asked over its own network from inside the fabric."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from remuda_lab.errors import LabError
from remuda_lab.namespaces import connect_in_network
from remuda_lab.processes import ProcessRef
from remuda_lab.waiting import wait_for


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestState:
    """``/cgi-bin/state``: ticks are seconds, roughly. The boot nonce is drawn once per boot and lives in
    memory only.
    """

    memory_tick: int
    disk_tick: int
    boots: int
    boot_nonce: str
    hostname: str
    uuid: str
    addresses: tuple[str, ...]
    uptime_seconds: float
    cpus: int
    memory_kib: int
    user_data: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestDisk:
    """``/cgi-bin/verify``: read from the disk itself, after every cached page was dropped."""

    disk_tick: int
    boots: int
    payload_sha256: str
    payload_expected: str

    @property
    def whole(self) -> bool:
        """Whether the payload written at the first boot still has its digest."""
        return self.payload_sha256 == self.payload_expected != ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestView:
    """A guest at an address of the guest network, seen from the network of ``init``."""

    init: ProcessRef
    address: IPv4Address

    def state(self, *, timeout: float = 5.0) -> GuestState:
        """Raises LabError when the guest does not answer within ``timeout`` seconds, or not with a state."""
        raw = self._get("/cgi-bin/state", timeout)
        return GuestState(**{**raw, "addresses": tuple(raw["addresses"])})

    def disk(self, *, timeout: float = 20.0) -> GuestDisk:
        """Raises LabError when the guest does not answer within ``timeout`` seconds."""
        return GuestDisk(**self._get("/cgi-bin/verify", timeout))

    def wait_up(self, *, timeout: float = 180.0) -> GuestState:
        """Wait until the guest answers. Raises WaitTimeout."""
        return wait_for(
            f"guest {self.address} answers", lambda: self.state(timeout=5), timeout=timeout, interval=0.2
        )

    def wait_tick(self, beyond: int, *, timeout: float = 90.0) -> GuestState:
        """Wait until the memory counter is greater than ``beyond``. Raises WaitTimeout."""
        seen: list[GuestState] = []

        def ticked() -> GuestState | None:
            seen[:] = [self.state(timeout=5)]
            return seen[0] if seen[0].memory_tick > beyond else None

        return wait_for(
            f"guest {self.address} ticks beyond {beyond}",
            ticked,
            timeout=timeout,
            interval=0.2,
            status=lambda: seen,
        )

    def _get(self, path: str, timeout: float) -> dict[str, Any]:
        try:
            connection = http.client.HTTPConnection(str(self.address))
            connection.sock = connect_in_network(self.init.pid, (str(self.address), 80), timeout=timeout)
            try:
                connection.request("GET", path, headers={"Connection": "close"})
                answer: dict[str, Any] = json.loads(connection.getresponse().read())
            finally:
                connection.close()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise LabError(f"guest {self.address}{path}: {error!r}") from error
        return answer
