"""Raw disk files and base files: holes stay holes, what was written is found."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from remuda_core.images.base_file import BusyPartial, PartialBase, base_path, copy_known
from remuda_core.images.chunks import CHUNK_BYTES, HOLE, Digest, chunk_digest, digest_of
from remuda_core.images.disk import allocated_chunks, read_chunk, write_at
from remuda_core.images.manifest import Manifest, chunk_count, serialize


def chunk(name: int, length: int = CHUNK_BYTES) -> bytes:
    return bytes([name]) * length


def manifest_of(*chunks: bytes) -> tuple[Manifest, Digest]:
    manifest = Manifest(
        virtual_bytes=sum(map(len, chunks)), digests=tuple(chunk_digest(data) for data in chunks)
    )
    return manifest, digest_of(serialize(manifest))


@given(
    written=st.sets(st.integers(0, 9 * CHUNK_BYTES), max_size=4), size=st.integers(1, 9 * CHUNK_BYTES + 777)
)
@settings(max_examples=40)
def test_every_chunk_that_was_written_to_is_found_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, written: set[int], size: int
) -> None:
    path = tmp_path_factory.mktemp("disk") / "raw"
    path.touch()
    os.truncate(path, size)
    fd = os.open(path, os.O_RDWR)
    try:
        inside = {offset for offset in written if offset < size}
        for offset in inside:
            write_at(fd, offset, b"\1")
        found = list(allocated_chunks(fd, size))
        assert found == sorted(set(found))
        assert {offset // CHUNK_BYTES for offset in inside} <= set(found)
        assert all(0 <= index < chunk_count(size) for index in found)
        others = set(range(chunk_count(size))) - set(found)
        assert all(not any(read_chunk(fd, size, index)) for index in others)
    finally:
        os.close(fd)


def test_a_finished_base_is_the_disk_read_only_sparse_and_alone(tmp_path: Path) -> None:
    a, b, zero = chunk(1), chunk(2, 1024), bytes(CHUNK_BYTES)
    manifest, digest = manifest_of(a, zero, zero, a, b)
    with PartialBase.opened(tmp_path, manifest, digest, owner="host") as partial:
        assert partial.present() == set()
        partial.write(digest_of(a), a)
        partial.write(digest_of(b), b)
        base = partial.finish()
    assert base == base_path(tmp_path, digest)
    assert base.read_bytes() == a + zero + zero + a + b
    assert base.stat().st_mode & 0o222 == 0
    assert base.stat().st_blocks * 512 < 3 * CHUNK_BYTES
    assert {path.suffix for path in tmp_path.iterdir()} == {".raw", ".manifest"}


def test_a_partial_file_is_hashed_again_and_only_sound_chunks_count(tmp_path: Path) -> None:
    a, b, zero = chunk(1), chunk(2), bytes(CHUNK_BYTES)
    manifest, digest = manifest_of(a, zero, b, b)
    with PartialBase.opened(tmp_path, manifest, digest, owner="host") as partial:
        partial.write(digest_of(a), a)
        partial.write(digest_of(b), b)
    (path,) = tmp_path.iterdir()
    with path.open("r+b") as file:
        # Something in a place of zeros, and one of the two copies of b damaged.
        file.seek(CHUNK_BYTES + 5)
        file.write(b"rubbish")
        file.seek(3 * CHUNK_BYTES + 5)
        file.write(b"rubbish")
    with PartialBase.opened(tmp_path, manifest, digest, owner="host") as partial:
        assert partial.present() == {digest_of(a)}
        partial.write(digest_of(b), b)
        assert partial.finish().read_bytes() == a + zero + b + b


def test_one_owner_cannot_open_a_partial_file_twice_and_two_owners_do_not_meet(tmp_path: Path) -> None:
    manifest, digest = manifest_of(chunk(1))
    with PartialBase.opened(tmp_path, manifest, digest, owner="one") as first:
        with pytest.raises(BusyPartial), PartialBase.opened(tmp_path, manifest, digest, owner="one"):
            pass
        with PartialBase.opened(tmp_path, manifest, digest, owner="two") as second:
            for partial in (first, second):
                partial.write(digest_of(chunk(1)), chunk(1))
            base = first.finish()
            inode = base.stat().st_ino
            # The slower one must not replace a file that guests may run on by now.
            assert second.finish().stat().st_ino == inode


def test_chunks_of_another_base_on_the_host_are_used_if_they_are_sound(tmp_path: Path) -> None:
    a, b, c = chunk(1), chunk(2), chunk(3, 512)
    old, old_digest = manifest_of(a, b, c)
    with PartialBase.opened(tmp_path, old, old_digest, owner="host") as partial:
        for data in (a, b, c):
            partial.write(digest_of(data), data)
        base = partial.finish()
    base.chmod(0o600)
    with base.open("r+b") as file:
        file.write(b"rubbish")
    new, new_digest = manifest_of(b, bytes(CHUNK_BYTES), a, c)
    lacking = set(new.lengths())
    with PartialBase.opened(tmp_path, new, new_digest, owner="host") as partial:
        assert list(copy_known(partial, lacking, [tmp_path])) == [digest_of(b), digest_of(c)]
        assert lacking == {digest_of(a)}
        assert partial.present() == {digest_of(b), digest_of(c)}
    assert HOLE not in lacking
