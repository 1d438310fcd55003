"""The backend: named, immutable blobs, in a local directory (file:///...) or in any store of `obstore`'s.

Local blobs are written here and not by obstore: its `put` makes a name visible before the bytes are on the
disk, and after a loss of power an empty file would then stand for a chunk and be deduplicated against.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, from_url
from remuda_core.errors import Reason, RemudaError

from remuda_image_store import local_files


class Blob(NamedTuple):
    key: str
    size_bytes: int
    version: str = ""
    """Tells a blob from another one that had the same key before."""


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
        local_files.open_root(root)
        return cls(LocalStore(root), root)

    async def put(self, key: str, data: bytes, *, head: bytes = b"", blind: bool = False) -> bool:
        """`head`, then `data`; durable when it returns. False: the key was there already.

        `blind`: takes as long then, so that a clock does not tell those who must not know.
        """
        if self._root is not None:
            return await asyncio.to_thread(local_files.put, self._root, key, head, data, blind=blind)
        with _answering():
            try:
                await obstore.put_async(self._store, key, head + data, mode="create")
            except AlreadyExistsError:
                return False
            except FileNotFoundError as error:
                raise RemudaError(Reason.STORE_UNAVAILABLE, "the backend's bucket does not exist") from error
        return True

    async def get(self, key: str) -> bytes:
        """Raises FileNotFoundError."""
        with _answering():
            result = await obstore.get_async(self._store, key)
            return bytes(await result.bytes_async())

    async def get_parted(self, key: str, head_bytes: int, *, once: bool = False) -> tuple[bytes, bytes]:
        """What `put` was given as `head`, and the rest. Raises FileNotFoundError.

        `once`: it is not worth a place in this machine's page cache.
        """
        if self._root is not None:
            with _answering():
                return await asyncio.to_thread(
                    local_files.get_parted, self._root / key, head_bytes, once=once
                )
        with _answering():
            result = await obstore.get_async(self._store, key)
            blob = memoryview(await result.bytes_async())
            return bytes(blob[:head_bytes]), bytes(blob[head_bytes:])

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
                if not meta["path"].startswith(local_files.TEMPORARY):
                    version = meta["e_tag"] or meta["last_modified"].isoformat()
                    yield Blob(meta["path"], meta["size"], version)

    def drop_temporary(self, older_than_seconds: float) -> None:
        """Files of writers that were killed. Blocks."""
        if self._root is not None:
            local_files.drop_temporary(self._root, older_than_seconds)

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
    except (BaseError, OSError) as error:
        raise RemudaError(
            Reason.STORE_UNAVAILABLE, "the backend does not answer", retry_after_seconds=2.0
        ) from error
