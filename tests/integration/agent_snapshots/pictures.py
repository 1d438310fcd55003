"""Images as files, to be compared with the disks that they were made of."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from remuda_core.images.chunks import CHUNK_BYTES, HOLE

from tests.unit.agent_snapshots.stores import MemoryStore

if TYPE_CHECKING:
    from tests.integration.agent_snapshots.conftest import Guest


def store_of(guest: Guest) -> MemoryStore:
    """An image store in which the guest's base may be named."""
    return MemoryStore(known=set(guest.manifest.digests))


def laid_down(store: MemoryStore, guest: Guest, path: Path) -> Path:
    """The image that was committed last, as a raw file; chunks that were not sent come from the base."""
    manifest = store.committed[-1].manifest
    places = {digest: index for index, digest in enumerate(guest.manifest.digests)}
    with guest.base.open("rb") as base, path.open("wb") as raw:
        raw.truncate(manifest.virtual_bytes)
        for index, digest in enumerate(manifest.digests):
            if digest != HOLE:
                data = store.chunks.get(digest)
                if data is None:
                    base.seek(places[digest] * CHUNK_BYTES)
                    data = base.read(CHUNK_BYTES)
                raw.seek(index * CHUNK_BYTES)
                raw.write(data)
    return path


def same(raw: Path, guest: Guest) -> None:
    """As the disk's file is now, to the last byte."""
    arguments = ["qemu-img", "compare", "--force-share", "-f", "raw", "-F", "qcow2"]
    subprocess.run([*arguments, raw, guest.paths.disk], check=True, stdout=subprocess.DEVNULL)
