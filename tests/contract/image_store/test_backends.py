"""What every backend has to do: the same tests over a directory and over S3."""

import asyncio

import pytest
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import ImageId
from remuda_core.images.chunks import CHUNK_BYTES, HOLE, Digest, digest_of
from remuda_core.images.manifest import Manifest
from remuda_image_store.blobs import Blobs
from remuda_image_store.content import Content
from remuda_image_store.testing import noise


@pytest.fixture
def blobs(backend_url: str) -> Blobs:
    return Blobs.open(backend_url)


async def test_a_blob_is_written_once_and_read_back_whole_and_in_parts(blobs: Blobs) -> None:
    assert await blobs.put("chunks/ab/name", b"first", head=b"\1")
    assert not await blobs.put("chunks/ab/name", b"second", head=b"\1")
    assert not await blobs.put("chunks/ab/name", b"second", head=b"\1", blind=True)
    assert await blobs.get("chunks/ab/name") == b"\1first"
    assert await blobs.get_parted("chunks/ab/name", 1) == (b"\1", b"first")
    assert await blobs.size("chunks/ab/name") == 6
    assert await blobs.exists("chunks/ab/name")


async def test_what_is_not_there_is_missing_and_deleting_it_is_no_error(blobs: Blobs) -> None:
    assert await blobs.size("chunks/ab/none") is None
    for read in (blobs.get("chunks/ab/none"), blobs.get_parted("chunks/ab/none", 1)):
        with pytest.raises(FileNotFoundError):
            await read
    await blobs.put("chunks/ab/one", b"1")
    await blobs.delete(["chunks/ab/one", "chunks/ab/one", "chunks/ab/none"])
    assert not await blobs.exists("chunks/ab/one")


async def test_a_list_is_of_everything_below_a_prefix(blobs: Blobs) -> None:
    keys = {f"uploads/image/ledger/one/{offset:016x}" for offset in range(20)}
    for key in keys | {"uploads/image2/ledger/x", "chunks/ab/one"}:
        await blobs.put(key, b"data")
    assert {blob.key async for blob in blobs.list("uploads/image")} == keys
    assert {blob.size_bytes async for blob in blobs.list("uploads/image")} == {4}
    assert [blob.key async for blob in blobs.list("nothing")] == []


async def test_of_several_who_write_one_blob_one_has_written_it(blobs: Blobs) -> None:
    data = noise(1, 300_000)
    answers = await asyncio.gather(*(blobs.put("chunks/cd/same", data) for _ in range(4)))
    assert answers.count(True) == 1
    assert await blobs.get("chunks/cd/same") == data


@pytest.mark.parametrize("length", [1, 255 << 10, 256 << 10, (1 << 20) + 1, CHUNK_BYTES - 1, CHUNK_BYTES])
async def test_a_chunk_of_any_length_comes_back_as_it_was(blobs: Blobs, length: int) -> None:
    content, data = Content(blobs), noise(length, length)
    digest = digest_of(data)
    assert await content.put_chunk(digest, data) == length + 1
    assert await content.put_chunk(digest, data) == 0
    assert await content.chunk(digest, length) == data
    missing = Digest(bytes(32))
    assert await content.sizes([digest, missing]) == {digest: length + 1}
    assert await content.lacking([digest, missing]) == {missing}


async def test_manifests_parts_and_ledgers_are_kept_and_go_with_the_upload(blobs: Blobs) -> None:
    content, image = Content(blobs), ImageId("11111111-2222-3333-4444-555555555555")
    manifest = Manifest(virtual_bytes=2 * CHUNK_BYTES, digests=(digest_of(b"x"), HOLE))
    assert await content.manifest(await content.put_manifest(manifest)) == manifest
    await content.put_part(image, "segment", 0, b"part")
    await content.put_ledger(image, "other", 0, manifest.digests)
    await content.put_ledger(image, "other", 2 * CHUNK_BYTES, [HOLE])
    assert [offset for offset, _ in await content.parts(image, "segment")] == [0]
    assert await content.ledgers(image, "other") == [(0, list(manifest.digests)), (2 * CHUNK_BYTES, [HOLE])]
    await content.delete_parts(image)
    assert not await content.ledgers(image, "other")
    assert not await content.parts(image, "segment")


async def test_a_bucket_that_does_not_answer_is_unavailable(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = Content(Blobs.open(s3_url.replace("//b", "//no-such-b")))
    with pytest.raises(RemudaError) as caught:
        await content.put_chunk(digest_of(b"x"), b"x")
    assert caught.value.reason is Reason.STORE_UNAVAILABLE
