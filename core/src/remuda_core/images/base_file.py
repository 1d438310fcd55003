"""A base image on a host while it is being fetched: `<digest>.<owner>.partial`, then `<digest>.raw`.

Everything here blocks. The partial file is what a later try goes on from: not trusted, every chunk in it
is hashed again. It is turned into the base by fsync and link, never by replacing: a base may be the backing
file of guests.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from remuda_core.images import disk
from remuda_core.images.chunks import CHUNK_BYTES, HOLE, Digest, digest_of, is_zero
from remuda_core.images.manifest import BadManifest, Manifest, parse, serialize

_BASE_MODE = 0o444
_MANIFEST = ".manifest"


def base_path(directory: Path, manifest_digest: Digest) -> Path:
    """Where the base image with this manifest is, or will be: a sparse raw file, never written again."""
    return directory / f"{manifest_digest.hex()}.raw"


class BusyPartial(RuntimeError):
    """Another process of this host fetches the same base into the same directory."""


class PartialBase:
    """Made by `opened`."""

    def __init__(self, fd: int, path: Path, manifest: Manifest, manifest_digest: Digest) -> None:
        self.manifest = manifest
        self._fd = fd
        self._path = path
        self._digest = manifest_digest
        self._places: dict[Digest, list[int]] = {}
        for index, digest in enumerate(manifest.digests):
            if digest != HOLE:
                self._places.setdefault(digest, []).append(index)

    @classmethod
    @contextmanager
    def opened(
        cls, directory: Path, manifest: Manifest, manifest_digest: Digest, *, owner: str
    ) -> Iterator["PartialBase"]:
        """`owner` tells hosts apart that share the directory. Raises BusyPartial."""
        path = directory / f"{manifest_digest.hex()}.{owner}.partial"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BusyPartial(str(path)) from error
            os.ftruncate(fd, manifest.virtual_bytes)
            yield cls(fd, path, manifest, manifest_digest)
        finally:
            os.close(fd)

    def present(self) -> set[Digest]:
        """Chunks that are there already, everywhere they belong. What else lies in the file is cleared."""
        count = {digest: len(places) for digest, places in self._places.items()}
        size = self.manifest.virtual_bytes
        # Taken before anything is written, since clearing changes what is allocated.
        for index in list(disk.allocated_chunks(self._fd, size)):
            wanted, data = self.manifest.digests[index], disk.read_chunk(self._fd, size, index)
            if wanted == HOLE:
                if not is_zero(data):
                    disk.write_at(self._fd, index * CHUNK_BYTES, bytes(len(data)))
            elif digest_of(data) == wanted:
                count[wanted] -= 1
        return {digest for digest, missing in count.items() if missing == 0}

    def write(self, digest: Digest, data: bytes) -> None:
        """`data` is verified already; goes to every place where the disk has this chunk."""
        for index in self._places[digest]:
            disk.write_at(self._fd, index * CHUNK_BYTES, data)

    def finish(self) -> Path:
        """Every chunk has been written: make it the base, durably."""
        directory, base = self._path.parent, base_path(self._path.parent, self._digest)
        _keep_manifest(base, serialize(self.manifest))
        os.fchmod(self._fd, _BASE_MODE)
        os.fsync(self._fd)
        # Somebody who shares the directory may have been quicker, with the same bytes.
        with suppress(FileExistsError):
            base.hardlink_to(self._path)
        self._path.unlink()
        disk.sync_directory(directory)
        return base


def copy_known(partial: PartialBase, lacking: set[Digest], directories: Iterable[Path]) -> Iterator[Digest]:
    """Take chunks out of other bases on this host; yields those that were found, each verified."""
    for source, digest, offset in _known(lacking, directories):
        if digest not in lacking:
            continue
        try:
            with source.open("rb", buffering=0) as file:
                data = disk.read_at(file.fileno(), offset, CHUNK_BYTES)
        except OSError:
            continue  # evicted meanwhile, or its disk cannot be read: what it had is fetched
        # The last chunk of a disk is shorter than what follows it in a file that has grown; it is fetched.
        if digest_of(data) == digest:
            partial.write(digest, data)
            lacking.discard(digest)
            yield digest


def _known(lacking: set[Digest], directories: Iterable[Path]) -> Iterator[tuple[Path, Digest, int]]:
    for directory in directories:
        for path in sorted(directory.glob(f"*{_MANIFEST}")):
            base = path.with_suffix(".raw")
            try:
                manifest = parse(path.read_bytes(), Digest(bytes.fromhex(path.stem)))
            except (BadManifest, ValueError, OSError):
                # Only a short cut: what cannot be used here is fetched.
                continue
            if base.exists():
                for index, digest in enumerate(manifest.digests):
                    if digest in lacking:
                        yield base, digest, index * CHUNK_BYTES


def _keep_manifest(base: Path, blob: bytes) -> None:
    path = base.with_suffix(_MANIFEST)
    temporary = path.with_suffix(f"{_MANIFEST}.{os.getpid()}")
    temporary.write_bytes(blob)
    temporary.replace(path)
