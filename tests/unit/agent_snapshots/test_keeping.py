"""What is kept beside a disk."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from remuda.image.v1.source_pb2 import ImageSource, TransferCounts
from remuda_agent.snapshots.keeping import Kept, keep, kept

from tests.unit.agent_snapshots.stores import manifest_of


def one(image: str = "image-1", checkpoint: str = "") -> Kept:
    return Kept(
        image_id=image,
        manifest=manifest_of(b"abc" + bytes(5 << 20)),
        consistency=ImageSource.CONSISTENCY_FILESYSTEM,
        time=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        counts=TransferCounts(disk_bytes=5, touched_bytes=3, incremental=True),
        checkpoint=checkpoint,
    )


def test_what_is_kept_is_found_again_and_the_later_replaces_the_earlier(tmp_path: Path) -> None:
    path = tmp_path / "last"
    assert kept(path) is None
    keep(path, one())
    assert kept(path) == one()
    keep(path, one("image-2", "remuda-2"))
    assert kept(path) == one("image-2", "remuda-2")
    assert [entry.name for entry in tmp_path.iterdir()] == ["last"]


def test_damage_is_found_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "last"
    keep(path, one())
    sound = path.read_bytes()
    head = sound.index(b"\n")
    flipped = bytearray(sound)
    flipped[-1] ^= 1
    for damaged in (
        b"",
        b"{}\n",
        sound[:10],
        sound[: head + 1],
        bytes(flipped),
        b"[1]\n" + sound[head + 1 :],
    ):
        path.write_bytes(damaged)
        assert kept(path) is None
