"""Blobs in a local directory: durable, never replaced; and errors that callers understand."""

import errno
import os
import random
import time
from pathlib import Path

import pytest
from remuda.store.v1 import image_pb2 as store_pb2
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import ImageId
from remuda_core.images.chunks import CHUNK_BYTES, Digest, digest_of
from remuda_image_store.blobs import Blobs
from remuda_image_store.content import Content, chunk_key
from remuda_image_store.uploads import read_back


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs.open(f"file://{tmp_path}/a%20backend")


async def test_a_blob_that_is_there_is_not_replaced(blobs: Blobs, tmp_path: Path) -> None:
    assert await blobs.put("chunks/ab/name", b"first")
    assert not await blobs.put("chunks/ab/name", b"second")
    assert await blobs.get("chunks/ab/name") == b"first"
    assert (tmp_path / "a backend/chunks/ab/name").read_bytes() == b"first"


async def test_a_blind_put_does_the_same_work_for_a_blob_that_is_there(
    blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await blobs.put("chunks/ab/name", b"first")
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    assert not await blobs.put("chunks/ab/name", b"second", blind=True)
    there = len(synced)
    assert await blobs.put("chunks/ab/other", b"second", blind=True)
    assert there == len(synced) - there > 0
    assert await blobs.get("chunks/ab/name") == b"first"
    assert list((tmp_path / "a backend/.tmp").iterdir()) == []


@pytest.mark.parametrize("refuses", [False, True], ids=["", "where O_DIRECT is refused"])
@pytest.mark.parametrize("size", [0, 5, 300_000, CHUNK_BYTES, CHUNK_BYTES + 100_000])
async def test_what_is_read_once_past_the_page_cache_is_the_same(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch, size: int, refuses: bool
) -> None:
    whole = random.Random(size).randbytes(size)
    opened: list[int] = []
    real = os.open

    def opening(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            opened.append(flags)
            if refuses:
                raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", opening)
    await blobs.put("chunks/ab/name", whole, head=b"\1")
    opened.clear()
    assert await blobs.get_parted("chunks/ab/name", 1, once=True) == (b"\1", whole)
    assert opened
    assert await blobs.get_parted("chunks/ab/name", 1) == (b"\1", whole)
    assert len(opened) == 1
    with pytest.raises(FileNotFoundError):
        await blobs.get_parted("chunks/ab/none", 1, once=True)


async def test_only_finished_blobs_are_listed_and_nothing_else_is_left(blobs: Blobs, tmp_path: Path) -> None:
    await blobs.put("chunks/ab/one", b"1")
    await blobs.put("manifests/cd/two", b"22")
    (tmp_path / "a backend/.tmp/unfinished").write_bytes(b"333")
    assert sorted([(blob.key, blob.size_bytes) async for blob in blobs.list("")]) == [
        ("chunks/ab/one", 1),
        ("manifests/cd/two", 2),
    ]
    assert [blob.key async for blob in blobs.list("manifests/")] == ["manifests/cd/two"]
    assert [path.name for path in (tmp_path / "a backend/.tmp").iterdir()] == ["unfinished"]


async def test_deleting_twice_is_no_error_and_what_is_gone_is_missing(blobs: Blobs) -> None:
    await blobs.put("chunks/ab/one", b"1")
    await blobs.delete(["chunks/ab/one", "chunks/ab/one"])
    assert not await blobs.exists("chunks/ab/one")
    with pytest.raises(FileNotFoundError):
        await blobs.get("chunks/ab/one")


def test_what_a_killed_writer_left_long_ago_is_dropped_and_a_fresh_file_is_not(tmp_path: Path) -> None:
    temporary = tmp_path / ".tmp"
    temporary.mkdir()
    for name in ("old", "new"):
        (temporary / name).touch()
    long_ago = time.time() - 2 * 86400
    os.utime(temporary / "old", (long_ago, long_ago))
    Blobs.open(f"file://{tmp_path}").drop_temporary(86400)
    assert [path.name for path in temporary.iterdir()] == ["new"]


@pytest.mark.parametrize("url", ["file://host/path", "file:relative", "nonsense"])
def test_a_url_that_names_no_backend_is_refused(url: str) -> None:
    with pytest.raises((ValueError, OSError, Exception), match=r"file|nonsense|URL"):
        Blobs.open(url)


async def test_a_backend_that_fails_is_unavailable_and_not_empty(blobs: Blobs, tmp_path: Path) -> None:
    digest = digest_of(b"a chunk")
    # A directory where a file is expected: reading it is an error that is not "not found".
    (tmp_path / "a backend" / chunk_key(digest)).mkdir(parents=True)
    with pytest.raises(RemudaError) as caught:
        await Content(blobs).chunk(digest, 7)
    assert caught.value.reason in (Reason.STORE_UNAVAILABLE, Reason.DIGEST_MISMATCH)


async def test_a_full_backend_says_so(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(self: Blobs, key: str, data: bytes, **_: object) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Blobs, "put", full)
    with pytest.raises(RemudaError) as caught:
        await Content(blobs).put_chunk(digest_of(b"x"), b"x")
    assert caught.value.reason is Reason.DISK_FULL


async def test_a_chunk_costs_its_bytes_once(blobs: Blobs) -> None:
    content, data = Content(blobs), b"again and again " * 1000
    digest = digest_of(data)
    assert 0 < await content.put_chunk(digest, data) < len(data)
    assert await content.put_chunk(digest, data) == 0
    assert await content.chunk(digest, len(data)) == data
    missing = Digest(bytes(32))
    assert await content.lacking([digest, missing]) == {missing}


async def test_parts_that_were_put_and_never_recorded_are_not_read(blobs: Blobs) -> None:
    content, image = Content(blobs), ImageId("image")
    for segment, offset, data in (
        ("one", 0, b"abc"),
        ("one", 3, b"def"),
        # Its replica was killed here.
        ("one", 6, b"XXX"),
        ("two", 6, b"gh"),
        ("two", 8, b"YY"),
    ):
        await content.put_part(image, segment, offset, data)
    segment_of = store_pb2.UploadRecord.Segment
    record = store_pb2.UploadRecord(
        image_id=image,
        committed_bytes=8,
        segments=[segment_of(id="one", offset=0), segment_of(id="two", offset=6)],
    )
    assert [part async for part in read_back(content, record)] == [b"abc", b"def", b"gh"]
    await content.delete_part(image, "one", 3)
    with pytest.raises(RemudaError) as caught:
        [part async for part in read_back(content, record)]
    assert caught.value.reason is Reason.DIGEST_MISMATCH
