"""Did a guest move without stopping? Judged from inside it and from both hosts, never by the api's word."""

from __future__ import annotations

import time
from dataclasses import dataclass

from remuda_lab.errors import LabError
from remuda_lab.guest_view import GuestState
from remuda_lab.mesh import Guest, Mesh


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """The guest's counters, and when they were read (monotonic seconds)."""

    state: GuestState
    at: float

    @classmethod
    def of(cls, guest: Guest) -> Before:
        return cls(state=guest.view.state(), at=time.monotonic())


def check_moved(
    mesh: Mesh, guest: Guest, before: Before, *, source: str, target: str, pool: str
) -> list[str]:
    """Sentences about what was seen. Raises LabError with the first thing that is not as it should be."""
    after = guest.view.wait_tick(before.state.memory_tick)
    disk = guest.view.disk()
    took = time.monotonic() - before.at
    old = before.state
    if after.boot_nonce != old.boot_nonce or after.boots != old.boots:
        raise LabError(f"{after.hostname} did not move, it booted again: {old} became {after}")
    if after.disk_tick < old.disk_tick or disk.disk_tick < old.disk_tick or not disk.whole:
        raise LabError(f"{after.hostname}'s disk did not come along: {old} became {after}, {disk}")
    if guest.host() != target:
        raise LabError(f"{after.hostname} belongs to {guest.host()}, not to {target}")
    running = {host: mesh.domains(host).get(guest.uid, "absent") for host in mesh.lab.running_hosts()}
    if running != {host: "running" if host == target else "absent" for host in running}:
        raise LabError(f"{after.hostname} should run on {target} only: {running}")
    if left := mesh.traces(source, guest.uid, pool=pool):
        raise LabError(f"{source} still has {left}")
    return [
        f"inside {after.hostname}: the same boot ({after.boot_nonce[:8]}), memory counter {old.memory_tick} "
        f"-> {after.memory_tick}, disk counter {old.disk_tick} -> {after.disk_tick} in {took:.1f} s",
        f"its disk, read again without any cache: counter {disk.disk_tick}, payload's digest is right",
        f"{target} runs it and has its definition; {source} has no domain, no QEMU"
        + (" and no file of it" if pool != "shared" else " of it"),
    ]
