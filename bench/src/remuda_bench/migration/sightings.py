"""What libvirt says of domains while they move, on every host, by one clock: the bench's own.

An onlooker: it asks nothing of the guests, and sees the same of every tool.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import libvirt
from remuda_lab.waiting import wait_for

PAUSED = (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED)
RESUMED = (libvirt.VIR_DOMAIN_EVENT_RESUMED, libvirt.VIR_DOMAIN_EVENT_RESUMED_MIGRATED)
GONE = (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED)

_COMPLETED = libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED | libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED
_loop = threading.Lock()
_loop_runs = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A lifecycle event; ``at`` in seconds of the wall clock."""

    host: str
    domain: str
    event: tuple[int, int]
    at: float


@dataclass(slots=True)
class Sightings:
    """Of the hosts whose libvirt URIs are given, while it is entered."""

    uris: Mapping[str, str]
    _seen: list[Seen] = field(default_factory=list)
    _connections: dict[str, Any] = field(default_factory=dict)

    def __enter__(self) -> Sightings:
        _start_event_loop()
        for host, uri in self.uris.items():
            connection = libvirt.open(uri)
            self._connections[host] = connection
            connection.domainEventRegisterAny(
                None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_event, host
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for connection in self._connections.values():
            connection.close()

    def wait(self, host: str, domain: str, event: tuple[int, int], *, since: float) -> float:
        """When it was seen first after ``since``; wall clock. Raises WaitTimeout."""

        def found() -> Seen | None:
            wanted = (host, domain, event)
            return next(
                (
                    one
                    for one in list(self._seen)
                    if (one.host, one.domain, one.event) == wanted and one.at >= since
                ),
                None,
            )

        name = f"{domain} shows event {event} on {host}"
        return wait_for(name, found, timeout=30, interval=0.01, status=lambda: self._seen[-6:]).at

    def completed(self, host: str, domain: str) -> dict[str, Any]:
        """Figures of the domain's last job (virDomainGetJobStats). Raises libvirtError."""
        stats: dict[str, Any] = self._connections[host].lookupByUUIDString(domain).jobStats(_COMPLETED)
        return stats

    def _on_event(self, _connection: object, domain: Any, event: int, detail: int, host: str) -> None:
        at = time.time()
        self._seen.append(Seen(host=host, domain=domain.UUIDString(), event=(event, detail), at=at))


def _start_event_loop() -> None:
    """Once per process, before the first connection."""
    global _loop_runs
    with _loop:
        if _loop_runs:
            return
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=_run_events, name="libvirt-events", daemon=True).start()
        _loop_runs = True


def _run_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()
