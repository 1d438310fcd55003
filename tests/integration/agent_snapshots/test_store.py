"""From a guest's 64 MiB file into a real image store, and back into a base image."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from remuda.image.v1.image_pb2 import Image
from remuda.image.v1.source_pb2 import ImageSource
from remuda_agent.disks.makers import run
from remuda_agent.snapshots import mapping
from remuda_agent.snapshots.planning import plan
from remuda_core.ids import HostId, ImageId
from remuda_core.images.chunks import CHUNK_BYTES, Digest
from remuda_core.images.fetch import ImageFetcher
from remuda_core.images.upload import ChunkUploader
from remuda_image_store.testing import QCOW2, Blank, Cloud, Sample

from tests.integration.agent_snapshots.conftest import DISK_BYTES, HOST, MIB
from tests.integration.agent_snapshots.pictures import same
from tests.integration.image_store.conftest import cloud

if TYPE_CHECKING:
    from tests.integration.agent_snapshots.conftest import Guest

__all__ = ["cloud"]

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


async def test_a_file_of_64_mib_costs_its_chunks_and_later_only_what_has_changed(
    rebuilt_guest: Guest, cloud: Cloud, tmp_path: Path
) -> None:
    guest = rebuilt_guest
    address = await cloud.serve()
    base = await _uploaded(guest, cloud, address, tmp_path)
    write = "head -c 67108864 /dev/urandom > /tmp/files/large; sync"
    await asyncio.to_thread(guest.run, write)
    # Its owner pauses it: its disk's file is the moment's content, to be compared.
    guest.domain().suspend()
    spans = await mapping.touched(guest.paths.disk)
    touched = plan(DISK_BYTES, earlier=guest.manifest, touched=spans).reads
    first, blank = await _snapshot(guest, cloud, address, base)
    counts = first.counts
    assert not counts.incremental
    assert counts.disk_bytes == DISK_BYTES
    assert 64 * MIB <= counts.touched_bytes == counts.read_bytes == CHUNK_BYTES * len(touched)
    assert 64 * MIB <= counts.sent_bytes <= min(96 * MIB, CHUNK_BYTES * len(touched))
    assert counts.read_bytes < 160 * MIB
    record = await cloud.record(blank)
    assert record is not None
    assert record.state == Image.STATE_ACTIVE
    assert record.source.consistency == ImageSource.CONSISTENCY_CRASH
    assert record.source.counts.sent_bytes == counts.sent_bytes
    same(await _fetched(cloud, address, blank, record.manifest_digest, tmp_path), guest)

    guest.domain().resume()
    await asyncio.to_thread(guest.run, "head -c 3000000 /dev/urandom > /tmp/files/little; sync")
    guest.domain().suspend()
    second, blank = await _snapshot(guest, cloud, address, base, ImageId(blank.id))
    assert second.counts.incremental
    assert second.counts.sent_bytes <= counts.sent_bytes // 2
    record = await cloud.record(blank)
    assert record is not None
    same(await _fetched(cloud, address, blank, record.manifest_digest, tmp_path), guest)
    guest.domain().resume()


async def _uploaded(guest: Guest, cloud: Cloud, address: str, directory: Path) -> Sample:
    packed = directory / "base.qcow2"
    await run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(guest.base), str(packed)])
    sample = await cloud.create(packed.read_bytes(), QCOW2)
    await (await cloud.images(address)).upload(sample)
    record = await cloud.record(sample)
    assert record is not None
    assert record.manifest_digest == guest.base.stem, "the same content"
    return sample


async def _snapshot(
    guest: Guest, cloud: Cloud, address: str, base: Sample, *readable: ImageId
) -> tuple[ImageSource, Blank]:
    blank = await cloud.blank()
    uploader = ChunkUploader(
        [await cloud.chunks(address, HOST)],
        image_id=blank.id,
        grant=cloud.grant(HOST, base.id, *readable, fills=blank, seconds=250),
        tries=30,
    )
    return await guest.snapshot(uploader, image=blank.id), blank


async def _fetched(cloud: Cloud, address: str, blank: Blank, digest: str, directory: Path) -> Path:
    """As another host does to launch from it."""
    host = HostId(str(uuid.uuid4()))
    fetcher = ImageFetcher([await cloud.chunks(address, host)], owner=host)
    return await fetcher.fetch(
        image_id=blank.id,
        manifest_digest=Digest(bytes.fromhex(digest)),
        grant=cloud.grant(host, blank.id),
        directory=directory,
    )
