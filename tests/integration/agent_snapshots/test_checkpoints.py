"""Later snapshots read what has changed since the last one, as long as QEMU has kept account of it.

The guest is paused by its owner before each comparison, so that its disk's file is the moment's content.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import libvirt
import pytest
from remuda.image.v1.source_pb2 import ImageSource
from remuda_agent.hypervisor.libvirt import open_libvirt
from remuda_core.errors import Reason, RemudaError
from remuda_core.images.chunks import CHUNK_BYTES, Digest
from remuda_core.testing.waiting import wait_for

from tests.integration.agent_snapshots.conftest import FILES_BYTES, FILES_START, MIB, TCG
from tests.integration.agent_snapshots.pictures import laid_down, same, store_of
from tests.unit.agent_snapshots.stores import MemoryStore

if TYPE_CHECKING:
    from tests.integration.agent_snapshots.conftest import Guest

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

RAW_START = FILES_START + FILES_BYTES + 64 * MIB


async def write(guest: Guest, seed: int, *, at: int, mib: int = 1) -> None:
    """Past every file system, and never flushed."""
    of = f"of=/dev/vda bs=64k count={16 * mib} seek={(RAW_START + at) >> 16} iflag=fullblock oflag=direct"
    await asyncio.to_thread(guest.run, f"yes {seed} | dd {of}")


async def paused(guest: Guest, store: MemoryStore, raw: Path) -> ImageSource:
    """A snapshot that is compared to the last byte."""
    guest.domain().suspend()
    source = await guest.snapshot(store)
    same(laid_down(store, guest, raw), guest)
    guest.domain().resume()
    return source


def checkpoints(guest: Guest) -> list[str]:
    return [checkpoint.getName() for checkpoint in guest.domain().listAllCheckpoints(0)]


async def test_the_second_snapshot_reads_what_has_changed_since_the_first(
    guest: Guest, tmp_path: Path
) -> None:
    store, raw = store_of(guest), tmp_path / "disk.raw"
    await write(guest, 1, at=0, mib=96)
    first = await paused(guest, store, raw)
    [name] = checkpoints(guest)
    await write(guest, 2, at=600 * MIB)
    await write(guest, 3, at=5 * MIB)
    second = await paused(guest, store, raw)
    assert second.counts.incremental
    # The two writes, and what the guest's own counters dirty.
    assert second.counts.read_bytes <= first.counts.read_bytes // 2
    [newer] = checkpoints(guest)
    assert newer != name
    third = await guest.snapshot(store)
    assert third.counts.incremental


async def test_a_snapshot_that_failed_loses_no_change(guest: Guest, tmp_path: Path) -> None:
    class Full(MemoryStore):
        async def lacking(self, digests: Sequence[Digest]) -> set[Digest]:
            raise RemudaError(Reason.DISK_FULL, "no room")

    store, raw = store_of(guest), tmp_path / "disk.raw"
    await guest.snapshot(store)
    await write(guest, 4, at=300 * MIB)
    with pytest.raises(RemudaError, match="no room"):
        await guest.snapshot(Full())
    await write(guest, 5, at=900 * MIB)
    source = await paused(guest, store, raw)
    assert source.counts.incremental
    assert len(checkpoints(guest)) == 1


async def test_an_earlier_image_that_may_not_be_named_any_more_is_read_from_the_disk(
    guest: Guest, tmp_path: Path
) -> None:
    await write(guest, 6, at=400 * MIB, mib=8)
    await guest.snapshot(store_of(guest))
    await write(guest, 7, at=500 * MIB)
    store = store_of(guest)  # which never had the chunks of that snapshot
    source = await paused(guest, store, tmp_path / "disk.raw")
    assert source.counts.incremental
    assert source.counts.sent_bytes >= 2 * CHUNK_BYTES


async def test_over_a_suspend_a_restart_and_a_kill_of_qemu_the_image_is_right(
    guest: Guest, tmp_path: Path
) -> None:
    store, raw = store_of(guest), tmp_path / "disk.raw"
    await guest.snapshot(store)
    await write(guest, 8, at=100 * MIB)
    guest.domain().managedSave(0)
    await asyncio.to_thread(guest.wait_up)
    await write(guest, 9, at=200 * MIB)
    await paused(guest, store, raw)

    await write(guest, 10, at=250 * MIB)
    guest.domain().destroy()  # QEMU ends in order, and keeps its account in the disk's file
    await asyncio.to_thread(guest.wait_up)
    await write(guest, 11, at=350 * MIB)
    await paused(guest, store, raw)

    await write(guest, 12, at=450 * MIB)
    guest.lab.send_signal("host1", f"qemu:{guest.instance}", signal.SIGKILL)
    await wait_for(
        lambda: guest.domain().isActive() == 0, timeout=60, last_status=lambda: "libvirt has not noticed"
    )
    await asyncio.to_thread(guest.wait_up)
    await write(guest, 13, at=550 * MIB)
    after_kill = await paused(guest, store, raw)
    assert not after_kill.counts.incremental
    await write(guest, 14, at=650 * MIB)
    again = await paused(guest, store, raw)
    assert again.counts.incremental
    assert len(checkpoints(guest)) == 1


async def test_off_the_checkpoint_is_kept_and_right_afterwards_and_goes_with_the_domain(
    guest: Guest, tmp_path: Path
) -> None:
    store, raw = store_of(guest), tmp_path / "disk.raw"
    await guest.snapshot(store)
    await write(guest, 15, at=700 * MIB)
    guest.domain().destroy()
    off = await guest.snapshot(store)
    assert off.consistency == ImageSource.CONSISTENCY_OFF
    assert not off.counts.incremental
    same(laid_down(store, guest, raw), guest)
    await asyncio.to_thread(guest.wait_up)
    await write(guest, 16, at=800 * MIB)
    await paused(guest, store, raw)
    guest.domain().destroy()
    async with open_libvirt(guest.uri, TCG) as hypervisor:
        assert len(await hypervisor.checkpoints(guest.instance)) == 1
        await hypervisor.undefine(guest.instance)
        with pytest.raises(libvirt.libvirtError):
            guest.domain()
        await hypervisor.define(guest.description)
        assert await hypervisor.checkpoints(guest.instance) == []
    await asyncio.to_thread(guest.wait_up)
    # The bitmap is in the file still, and nobody's.
    source = await paused(guest, store, raw)
    assert not source.counts.incremental
