"""Nonce files: what is written is removed, by whoever is left to do it."""

import asyncio
import os
import threading
import time
import uuid
from pathlib import Path

import pytest
from remuda_agent.disks.pools import Pool, Pools
from remuda_agent.probing import nonces
from remuda_agent.probing.nonces import ABANDONED_SECONDS, PREFIX, NonceFiles
from remuda_core.errors import Reason, RemudaError
from remuda_core.testing.waiting import wait_for

CONTENT = b"sixteen bytes or more"


def pools(directory: Path) -> Pools:
    path = directory / "pool"
    path.mkdir(exist_ok=True)
    made = Pools([Pool(name="shared", path=path, shared=True)])
    made.prepare()
    return made


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "pool").glob(f"{PREFIX}*"))


def of_host(name: str, directory: Path, *, lifetime: float = 60.0) -> NonceFiles:
    return NonceFiles(pools(directory), notes=directory / name / "probes", lifetime=lifetime)


async def test_a_file_that_nobody_removes_lives_no_longer_than_its_time(tmp_path: Path) -> None:
    async with of_host("a", tmp_path, lifetime=0.05) as own:
        await own.write("shared", str(uuid.uuid4()), CONTENT)

        def left() -> list[str]:
            # The note goes after the file, so that a crash in between loses neither.
            return [*files(tmp_path), *(path.name for path in (tmp_path / "a" / "probes").iterdir())]

        await wait_for(lambda: not left(), timeout=60, last_status=lambda: f"{left()} is still there")


async def test_what_a_crash_has_left_is_removed_at_the_next_start_and_nothing_else(tmp_path: Path) -> None:
    crashed, other, kept = of_host("a", tmp_path), of_host("b", tmp_path), str(uuid.uuid4())
    await crashed.write("shared", str(uuid.uuid4()), CONTENT)
    await other.write("shared", kept, CONTENT)
    # Noted and not yet written, written and not yet renamed: a crash can come anywhere.
    early, half = str(uuid.uuid4()), str(uuid.uuid4())
    for name in (early, half):
        (tmp_path / "a" / "probes" / f"shared.{name}").touch()
    (tmp_path / "pool" / f"{PREFIX}{half}.new").write_bytes(b"six")
    async with of_host("a", tmp_path):
        assert files(tmp_path) == [f"{PREFIX}{kept}"], "another host's probe is its own"
        assert list((tmp_path / "a" / "probes").iterdir()) == []
    await other.remove("shared", kept)


async def test_a_file_of_a_host_that_never_came_back_is_removed_after_an_hour(tmp_path: Path) -> None:
    lost = str(uuid.uuid4())
    await of_host("gone", tmp_path).write("shared", lost, CONTENT)
    old = time.time() - ABANDONED_SECONDS - 60
    os.utime(tmp_path / "pool" / f"{PREFIX}{lost}", (old, old))
    assert of_host("a", tmp_path).sweep() == [f"shared/{PREFIX}{lost}"]
    assert files(tmp_path) == []


async def test_a_note_of_a_pool_that_was_taken_away_does_not_keep_the_agent_from_starting(
    tmp_path: Path,
) -> None:
    notes = tmp_path / "a" / "probes"
    notes.mkdir(parents=True)
    (notes / f"former.{uuid.uuid4()}").touch()
    assert of_host("a", tmp_path).sweep() == []
    assert list(notes.iterdir()) == []


async def test_writing_twice_is_harmless(tmp_path: Path) -> None:
    name = str(uuid.uuid4())
    async with of_host("a", tmp_path) as own:
        assert await own.write("shared", name, CONTENT) == await own.write("shared", name, CONTENT)
        assert await own.read("shared", name) == CONTENT
    assert files(tmp_path) == []


async def test_a_full_pool_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_path: Path, _content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nonces, "_write", full)
    with pytest.raises(RemudaError, match="no space left") as refused:
        await of_host("a", tmp_path).write("shared", str(uuid.uuid4()), CONTENT)
    assert refused.value.reason is Reason.DISK_FULL


async def test_a_pool_that_hangs_does_not_hang_its_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang = threading.Event()
    monkeypatch.setattr(nonces, "_write", lambda _path, _content: hang.wait(30))
    monkeypatch.setattr(nonces, "IO_SECONDS", 0.1)
    started = asyncio.get_running_loop().time()
    with pytest.raises(RemudaError, match="did not answer") as refused:
        await of_host("a", tmp_path).write("shared", str(uuid.uuid4()), CONTENT)
    assert refused.value.reason is Reason.STEP_FAILED
    assert asyncio.get_running_loop().time() - started < 5
    hang.set()
