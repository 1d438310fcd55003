"""Garbage collection on both backends: what is listed can be marked, told apart, and removed."""

from remuda_core.images.chunks import digest_of
from remuda_image_store.blobs import Blobs
from remuda_image_store.content import MANIFESTS, Content, chunk_key
from remuda_image_store.marking import Listed, judge


async def listed(blobs: Blobs, prefix: str) -> list[Listed]:
    return [Listed(name=blob.key, version=blob.version) async for blob in blobs.list(prefix)]


async def test_a_shard_is_listed_without_its_neighbours_and_a_removed_blob_can_be_put_anew(
    backend_url: str,
) -> None:
    blobs = Blobs.open(backend_url)
    data = [b"%d" % number for number in range(8)]
    for each in data:
        await Content(blobs).put_chunk(digest_of(each), each)
    key = chunk_key(digest_of(data[0]))
    shard = key.rpartition("/")[0]
    found = await listed(blobs, shard)
    assert key in {blob.name for blob in found}
    assert all(blob.name.startswith(f"{shard}/") and blob.version for blob in found)
    assert await listed(blobs, f"{MANIFESTS}00") == []
    first = judge(found, {key}, [], now=0, grace=1)
    # Listing changes nothing: the same blob has the same version.
    assert judge(await listed(blobs, shard), {key}, first.marks, now=1, grace=1).due == (key,)
    await blobs.delete([key])
    assert key not in {blob.name for blob in await listed(blobs, shard)}
    assert await Content(blobs).put_chunk(digest_of(data[0]), data[0]) > 0
    assert await blobs.exists(key)
