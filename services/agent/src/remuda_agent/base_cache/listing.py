"""What a pool's cache of base images holds, by manifest digest. Blocking; changes nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from remuda_core.ids import HostId

from remuda_agent.disks.pools import Pool

_NAME = re.compile(r"(?P<digest>[0-9a-f]{64})\.(?P<rest>.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One base: the image itself, its manifest, and whatever fetches of it have left."""

    base: Path
    """`<digest>.raw`, whether or not it is there yet."""
    files: tuple[Path, ...]
    """Those that this host may remove, the image itself first: a manifest without it is a left-over."""
    bytes: int
    """On disk, all of it."""
    used: float
    """When it was last asked for, written or seen in use; seconds since 1970."""
    complete: bool
    """The image itself is there."""


def entries(pool: Pool, host: HostId) -> list[Entry]:
    """Least recently used first. Raises OSError when the pool cannot be listed.

    On a shared pool only what this host's own fetches have left may be removed: another host may be about to
    lay a disk on any base there, and nothing tells.
    """
    found: dict[str, list[tuple[Path, os.stat_result]]] = {}
    for path in sorted(pool.bases.iterdir()):
        if (match := _NAME.fullmatch(path.name)) is not None:
            with suppress(FileNotFoundError):
                found.setdefault(match["digest"], []).append((path, path.lstat()))
    listed = [_entry(pool, host, digest, files) for digest, files in found.items()]
    return sorted(listed, key=lambda entry: (entry.used, entry.base))


def _entry(pool: Pool, host: HostId, digest: str, found: list[tuple[Path, os.stat_result]]) -> Entry:
    base = pool.bases / f"{digest}.raw"
    ours = [path for path, _ in found if not pool.shared or path.name == f"{digest}.{host}.partial"]
    complete = any(path == base for path, _ in found)
    # The image's own time tells: a manifest is written once, and a part that is left of it means nothing.
    times = [status.st_mtime for path, status in found if path == base or not complete]
    # By inode: a part becomes the image by a second name.
    blocks = {status.st_ino: status.st_blocks for _, status in found}
    return Entry(
        base=base,
        files=tuple(sorted(ours, key=lambda path: (path != base, path))),
        bytes=sum(blocks.values()) * 512,
        used=max(times),
        complete=complete,
    )


def total(listed: Iterable[Entry]) -> int:
    return sum(entry.bytes for entry in listed)


def partials(entry: Entry) -> Iterator[Path]:
    return (path for path in entry.files if path.suffix == ".partial")
