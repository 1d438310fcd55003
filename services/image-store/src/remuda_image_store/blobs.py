"""The backend: named, immutable blobs, in a local directory (file:///...) or in any store of `obstore`'s.

Local blobs are written here and not by obstore: its `put` makes a name visible before the bytes are on the
disk, and after a loss of power an empty file would then stand for a chunk and be deduplicated against.
"""

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, from_url
from remuda_core.errors import Reason, RemudaError
from remuda_core.images.disk import sync_directory

_TEMPORARY = ".tmp"
# A writer that stood still for so long finds its file gone, and fails.
_TEMPORARY_SECONDS = 24 * 3600


class Blob(NamedTuple):
    key: str
    size_bytes: int


class Space(NamedTuple):
    free_bytes: int
    capacity_bytes: int


class Blobs:
    """Keys are relative paths with "/". A key's content never changes; writing it again has no effect.

    A backend that does not answer raises RemudaError STORE_UNAVAILABLE.
    """

    def __init__(self, store: ObjectStore, root: Path | None) -> None:
        """Made by `open`."""
        self._store = store
        self._root = root

    @classmethod
    def open(cls, url: str) -> "Blobs":
        """`url`: file:///directory (made if need be), or s3://bucket/prefix with the AWS variables set."""
        parts = urlsplit(url)
        if parts.scheme != "file":
            return cls(from_url(url), None)
        if parts.netloc or not parts.path.startswith("/"):
            raise ValueError(f"backend {url!r} is not like file:///directory")
        root = Path(unquote(parts.path))
        (root / _TEMPORARY).mkdir(parents=True, exist_ok=True)
        _drop_old(root / _TEMPORARY)
        return cls(LocalStore(root), root)

    async def put(self, key: str, data: bytes, *, blind: bool = False) -> bool:
        """Durable when it returns. False: the key was there already.

        `blind`: takes as long then, so that a clock does not tell those who must not know.
        """
        if self._root is not None:
            return await asyncio.to_thread(_put_local, self._root, key, data, blind)
        with _answering():
            try:
                await obstore.put_async(self._store, key, data, mode="create")
            except AlreadyExistsError:
                return False
        return True

    async def get(self, key: str) -> bytes:
        """Raises FileNotFoundError."""
        with _answering():
            result = await obstore.get_async(self._store, key)
            return bytes(await result.bytes_async())

    async def exists(self, key: str) -> bool:
        return await self.size(key) is not None

    async def size(self, key: str) -> int | None:
        """In bytes; None: it is not there."""
        with _answering():
            try:
                return (await obstore.head_async(self._store, key))["size"]
            except FileNotFoundError:
                return None

    async def delete(self, keys: Iterable[str]) -> None:
        """Keys that are gone already are no error."""
        for key in keys:
            with _answering(), contextlib.suppress(FileNotFoundError):
                await obstore.delete_async(self._store, key)

    async def list(self, prefix: str) -> AsyncIterator[Blob]:
        """In no particular order."""
        pages = aiter(obstore.list(self._store, prefix, chunk_size=1000))
        while True:
            with _answering():
                page = await anext(pages, None)
            if page is None:
                return
            for meta in page:
                if not meta["path"].startswith(_TEMPORARY):
                    yield Blob(meta["path"], meta["size"])

    def space(self) -> Space | None:
        """None where the backend does not tell."""
        if self._root is None:
            return None
        stat = os.statvfs(self._root)
        return Space(stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize)


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except BaseError as error:
        raise RemudaError(
            Reason.STORE_UNAVAILABLE, "the backend does not answer", retry_after_seconds=2.0
        ) from error


def _put_local(root: Path, key: str, data: bytes, blind: bool) -> bool:
    path = root / key
    _make_directory(path.parent, root)
    new = blind or not path.exists()
    if new:
        new = _write(root / _TEMPORARY / str(uuid.uuid4()), path, data)
    # Also for a name that was there: whoever linked it may not have come to this point yet.
    sync_directory(path.parent)
    return new


def _write(temporary: Path, path: Path, data: bytes) -> bool:
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # A link and not a rename: it refuses to replace.
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            return False
        return True
    finally:
        temporary.unlink(missing_ok=True)


def _make_directory(directory: Path, root: Path) -> None:
    if directory == root or directory.exists():
        return
    _make_directory(directory.parent, root)
    directory.mkdir(exist_ok=True)
    sync_directory(directory.parent)


def _drop_old(directory: Path) -> None:
    oldest = time.time() - _TEMPORARY_SECONDS
    for path in directory.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < oldest:
                path.unlink()
