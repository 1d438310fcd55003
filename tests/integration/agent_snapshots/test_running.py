"""Snapshots of a real guest: running, paused, suspended, off, and going off meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import libvirt
import pytest
from remuda.compute.v1.snapshot_pb2 import SnapshotInstanceRequest
from remuda.image.v1.source_pb2 import ImageSource
from remuda_agent.disks.instance_files import PoolInstanceFiles
from remuda_agent.disks.makers import ProgramDiskMaker
from remuda_agent.hypervisor.libvirt import open_libvirt
from remuda_agent.snapshots.moments import SCRATCH
from remuda_core.errors import Reason, RemudaError
from remuda_core.images.chunks import Digest
from remuda_core.testing.waiting import wait_for

from tests.integration.agent_snapshots.conftest import FILES_BYTES, FILES_START, MIB, TCG, file_in, fsck
from tests.integration.agent_snapshots.pictures import laid_down, same, store_of
from tests.unit.agent_snapshots.stores import MemoryStore

if TYPE_CHECKING:
    from tests.integration.agent_snapshots.conftest import Guest

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

NONE, REQUIRED = SnapshotInstanceRequest.QUIESCE_NONE, SnapshotInstanceRequest.QUIESCE_REQUIRED
RAW_START = FILES_START + FILES_BYTES + 64 * MIB
"""Of the disk, behind everything that has a file system."""


async def test_a_running_guest_is_frozen_for_a_moment_and_its_image_is_clean(
    guest: Guest, tmp_path: Path
) -> None:
    said = await asyncio.to_thread(guest.run, "echo before > /tmp/files/before; sync; cat /proc/mounts")
    assert "/tmp/files" in said
    tick = guest.view.state().disk_tick
    store = store_of(guest)
    source = await guest.snapshot(store, quiesce=REQUIRED)
    assert source.consistency == ImageSource.CONSISTENCY_FILESYSTEM
    await asyncio.to_thread(guest.run, "echo after > /tmp/files/after; sync")
    raw = laid_down(store, guest, tmp_path / "disk.raw")
    fsck(raw, start=FILES_START, length=FILES_BYTES)
    assert file_in(raw, "/before") == b"before\n"
    assert file_in(raw, "/after") == b""
    fsck(raw, start=25 * MIB, length=16 * MIB)
    assert int(file_in(raw, "/tick")) >= tick
    assert guest.domain().state()[0] == libvirt.VIR_DOMAIN_RUNNING
    assert guest.domain().jobStats().get("type", 0) == 0
    guest.view.wait_tick(guest.view.state().memory_tick)


async def test_what_a_guest_wrote_and_never_flushed_is_in_its_image(guest: Guest, tmp_path: Path) -> None:
    # In clusters of their own tables: QEMU has them in memory only.
    places = [RAW_START + number * 512 * MIB for number in range(3)]
    for number, place in enumerate(places):
        of = f"of=/dev/vda bs=64k count=1 seek={place >> 16} iflag=fullblock oflag=direct"
        script = f"yes unflushed-{number} | dd {of}"
        await asyncio.to_thread(guest.run, script)
    store = store_of(guest)
    source = await guest.snapshot(store, quiesce=NONE)
    assert source.consistency == ImageSource.CONSISTENCY_CRASH
    raw = laid_down(store, guest, tmp_path / "disk.raw")
    with raw.open("rb") as disk:
        for number, place in enumerate(places):
            disk.seek(place)
            assert disk.read(12) == f"unflushed-{number}\n".encode()


async def test_a_paused_guest_stays_paused_and_its_image_is_its_disk(guest: Guest, tmp_path: Path) -> None:
    await asyncio.to_thread(guest.run, "head -c 3000000 /dev/urandom > /tmp/files/late")  # not synced
    guest.domain().suspend()
    store = store_of(guest)
    with pytest.raises(RemudaError) as refused:
        await guest.snapshot(store, quiesce=REQUIRED)
    assert refused.value.reason is Reason.QUIESCE_FAILED
    source = await guest.snapshot(store)
    assert source.consistency == ImageSource.CONSISTENCY_CRASH
    assert guest.domain().state()[0] == libvirt.VIR_DOMAIN_PAUSED
    same(laid_down(store, guest, tmp_path / "disk.raw"), guest)


async def test_suspended_or_off_a_guest_is_read_as_it_lies_there(guest: Guest, tmp_path: Path) -> None:
    nonce = guest.view.state().boot_nonce
    guest.domain().managedSave(0)
    store = store_of(guest)
    source = await guest.snapshot(store, quiesce=REQUIRED)
    assert source.consistency == ImageSource.CONSISTENCY_OFF
    same(laid_down(store, guest, tmp_path / "suspended.raw"), guest)
    await asyncio.to_thread(guest.wait_up)
    assert guest.view.state().boot_nonce == nonce, "it goes on from where it was suspended"
    guest.domain().destroy()
    source = await guest.snapshot(store)
    assert source.consistency == ImageSource.CONSISTENCY_OFF
    same(laid_down(store, guest, tmp_path / "off.raw"), guest)


async def test_a_guest_that_goes_off_while_it_is_read_is_read_as_one_that_is_off(
    guest: Guest, tmp_path: Path
) -> None:
    class Destroying(MemoryStore):
        async def lacking(self, digests: Sequence[Digest]) -> set[Digest]:
            if not self.asked:
                await asyncio.to_thread(guest.domain().destroy)
            return await super().lacking(digests)

    # More than is read ahead, so that something is left to be read.
    await asyncio.to_thread(guest.run, "head -c 80000000 /dev/zero | tr '\\0' x > /tmp/files/many; sync")
    store = Destroying(known=set(guest.manifest.digests))
    source = await guest.snapshot(store)
    assert source.consistency == ImageSource.CONSISTENCY_OFF
    same(laid_down(store, guest, tmp_path / "disk.raw"), guest)


async def test_a_guest_agent_that_is_silent_costs_only_the_quiet(guest: Guest) -> None:
    # By its web server, which goes on: an agent that is stopped cannot be told to go on.
    for name, sent in (("still", "STOP"), ("wake", "CONT")):
        lines = (
            f"'#!/bin/sh' 'killall -{sent} qemu-ga' 'echo Content-Type: application/json' echo 'echo {{}}'"
        )
        file = f"/www/cgi-bin/{name}"
        await asyncio.to_thread(guest.run, f"printf '%s\\n' {lines} > {file}; chmod +x {file}")
    guest.view._get("/cgi-bin/still", 60)
    await wait_for(lambda: not guest.greets(), timeout=60, last_status=lambda: "the guest agent answers")
    try:
        store = store_of(guest)
        with pytest.raises(RemudaError) as refused:
            await guest.snapshot(store, quiesce=REQUIRED)
        assert refused.value.reason is Reason.QUIESCE_FAILED
        source = await guest.snapshot(store)
        assert source.consistency == ImageSource.CONSISTENCY_CRASH
    finally:
        guest.view._get("/cgi-bin/wake", 60)
    await wait_for(guest.greets, timeout=60, last_status=lambda: "the guest agent is silent")
    assert guest.agent("guest-fsfreeze-status") == "thawed"


async def test_a_guest_is_thawed_when_the_limit_is_over_and_that_counts_for_nothing(guest: Guest) -> None:
    async with (
        open_libvirt(guest.uri, TCG) as hypervisor,
        hypervisor.guarded(guest.instance, limit=1) as guard,
    ):
        await guard.freeze()
        await wait_for(
            lambda: guest.agent("guest-fsfreeze-status") == "thawed",
            timeout=60,
            last_status=lambda: "still frozen",
        )
        assert not await guard.thaw()
        await guard.freeze()


FREEZING = """
import asyncio, sys
from remuda_agent.hypervisor.libvirt import open_libvirt
from remuda_agent.probe.domain_type import DomainType
async def main(uri, instance):
    async with open_libvirt(uri, DomainType(name="qemu", reason="a test", proven=True)) as hypervisor:
        async with hypervisor.guarded(instance, limit=1000) as guard:
            await guard.freeze()
            print("frozen", flush=True)
            await asyncio.sleep(1000)
asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_guest_whose_agent_is_killed_while_it_is_frozen_is_thawed(guest: Guest) -> None:
    with subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", FREEZING, guest.uri, guest.instance], stdout=subprocess.PIPE
    ) as agent:
        assert agent.stdout is not None
        assert await asyncio.to_thread(agent.stdout.readline) == b"frozen\n"
        assert guest.agent("guest-fsfreeze-status") == "frozen"
        agent.kill()
    await asyncio.to_thread(guest.view.wait_tick, 0, timeout=60)
    await wait_for(
        lambda: guest.agent("guest-fsfreeze-status") == "thawed",
        timeout=60,
        last_status=lambda: "still frozen",
    )
    await asyncio.to_thread(guest.run, "echo goes-on > /tmp/files/goes-on; sync")


async def test_a_killed_guard_leaves_nobody_frozen(guest: Guest) -> None:
    async with (
        open_libvirt(guest.uri, TCG) as hypervisor,
        hypervisor.guarded(guest.instance, limit=1000) as guard,
    ):
        await guard.freeze()
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                words = entry.read_bytes().split(b"\0")
                if b"remuda_agent.snapshots.guard" in words and guest.instance.encode() in words:
                    os.kill(int(entry.parent.name), signal.SIGKILL)
        with pytest.raises(RemudaError, match="guard"):
            await guard.thaw()
    assert guest.agent("guest-fsfreeze-status") == "thawed"


async def test_a_backup_that_nobody_reads_any_more_is_ended_and_the_order_begins_anew(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, image = store_of(guest), str(uuid.uuid4())
    await asyncio.to_thread(guest.run, "echo more > /tmp/files/more; sync")

    class Stuck(MemoryStore):
        async def lacking(self, digests: Sequence[Digest]) -> set[Digest]:
            reached.set()
            await asyncio.sleep(1000)
            return set()

    reached = asyncio.Event()
    request = guest.request(image=image)
    async with guest.snapshots(Stuck()) as (snapshots, hypervisor):
        working = asyncio.create_task(snapshots.take(request, guest.job()))
        await asyncio.wait_for(reached.wait(), 120)
        view = await hypervisor.view(guest.instance)
        assert view is not None
        assert view.job == "OTHER"
        # As if the process were killed: nothing of its own clears up.
        monkeypatch.setattr(hypervisor, "end_backup", _nothing)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    guest.paths.directory.joinpath(SCRATCH).touch()
    async with guest.snapshots(store) as (snapshots, hypervisor):
        view = await hypervisor.view(guest.instance)
        assert view is not None
        assert view.job == "OTHER", "the job outlives who began it"
        await snapshots.end_leftovers(PoolInstanceFiles(guest.pools, ProgramDiskMaker()).owners())
        view = await hypervisor.view(guest.instance)
        assert view is not None
        assert view.job == "NONE"
        assert guest.leftovers() == []
        job = guest.job()
        job.stop.set()
        with pytest.raises(RemudaError) as stopped:
            await snapshots.take(request, job)
        assert stopped.value.reason is Reason.CANCELLED
        assert guest.leftovers() == []
        await snapshots.take(request, guest.job())
    assert len(store.committed) == 1


async def _nothing(_: object) -> None:
    return None
