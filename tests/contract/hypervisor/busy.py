"""A guest that does not come to the end of its migration, and what its job was told. Both drivers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import libvirt
import libvirt_qemu
from remuda_agent.hypervisor import DomainDescription
from remuda_agent.hypervisor.fake import FakeTimings
from remuda_core.testing.waiting import wait_for

from tests.contract.hypervisor.conftest import FakeHosts, Hosts, LabHosts

T = TypeVar("T")

DIRTIER = """
dd if=/dev/urandom of=/tmp/hot bs=64k count=32
while :; do dd if=/tmp/hot of=/tmp/busy bs=64k conv=notrunc; usleep 10000; done
"""
"""Not of zeroes, which QEMU sends as next to nothing; the same bytes every time, since TCG may lose writes of
a guest that is being moved.
"""
# Its kernel has long been loaded. QEMU sends 16 MiB of a disk before it thinks of the cap.
FILLER = "dd if=/dev/urandom of=/dev/vda1 bs=1M count=22; sync"
ENOUGH_MS = 60
FAKE_DISK_BYTES = 10 << 20


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """Flags and parameters of a running migration. Caps in MiB/s, 0: none."""

    auto_converge: bool
    post_copy: bool
    cap: int
    post_copy_cap: int
    downtime_ms: int


async def keep_busy(hosts: Hosts, guest: DomainDescription) -> None:
    """The booted guest rewrites 2 MiB of its memory from now on, several times a second: with a low cap no
    short pause is enough to move it, one of `ENOUGH_MS` is on the fake. A real one may all the same come to
    its end when its machine has no time for it during a whole pass.
    """
    if isinstance(hosts, FakeHosts):
        hosts.fabric.timings = FakeTimings(
            migrate_disks=0.5,
            disk_bytes=FAKE_DISK_BYTES,
            migrate_memory=float("inf"),
            switch_over=0.1,
            enough_downtime_ms=ENOUGH_MS,
        )
        return
    await _execute(hosts, guest, DIRTIER)


async def fill_disk(hosts: Hosts, guest: DomainDescription) -> None:
    """So that its disk takes seconds to copy at 2 MiB/s."""
    if isinstance(hosts, FakeHosts):
        return  # a fake disk is large enough
    pid = await _execute(hosts, guest, FILLER)

    async def written() -> bool:
        status = await _agent(hosts, guest, "guest-exec-status", {"pid": pid})
        return bool(status["exited"])

    await wait_for(written, timeout=60)


async def _execute(hosts: Hosts, guest: DomainDescription, script: str) -> int:
    arguments = {"path": "/bin/sh", "arg": ["-c", script]}
    return int((await _agent(hosts, guest, "guest-exec", arguments))["pid"])


async def _agent(hosts: Hosts, guest: DomainDescription, name: str, arguments: dict[str, Any]) -> Any:
    command = json.dumps({"execute": name, "arguments": arguments})
    said = await _ask(hosts, guest, lambda domain: str(libvirt_qemu.qemuAgentCommand(domain, command, 10, 0)))
    return json.loads(said)["return"]


async def job_settings(hosts: Hosts, guest: DomainDescription) -> JobSettings:
    """Of the guest's migration away from `a`, in QEMU's own words."""
    if isinstance(hosts, FakeHosts):
        with hosts.fabric.transaction() as world:
            job = world.job_of("host1", guest.instance_id)
            assert job is not None
            return JobSettings(
                auto_converge=job.request.auto_converge,
                post_copy=job.request.allow_post_copy,
                cap=round(job.memory_rate) >> 20,
                post_copy_cap=round(job.post_copy_rate) >> 20 if job.request.allow_post_copy else 0,
                downtime_ms=job.downtime_ms,
            )

    def look(domain: Any) -> JobSettings:
        def qmp(name: str) -> Any:
            answer = libvirt_qemu.qemuMonitorCommand(domain, json.dumps({"execute": name}), 0)
            return json.loads(answer)["return"]

        on = {one["capability"] for one in qmp("query-migrate-capabilities") if one["state"]}
        parameters = qmp("query-migrate-parameters")
        return JobSettings(
            auto_converge="auto-converge" in on,
            post_copy="postcopy-ram" in on,
            cap=parameters["max-bandwidth"] >> 20,
            post_copy_cap=parameters["max-postcopy-bandwidth"] >> 20,
            downtime_ms=parameters["downtime-limit"],
        )

    return await _ask(hosts, guest, look)


async def _ask(hosts: Hosts, guest: DomainDescription, ask: Callable[[Any], T]) -> T:
    assert isinstance(hosts, LabHosts)
    uri = hosts.lab.host("host1").libvirt_uri

    def work() -> T:
        connection = libvirt.open(uri)
        try:
            return ask(connection.lookupByUUIDString(guest.instance_id))
        finally:
            connection.close()

    return await asyncio.to_thread(work)
