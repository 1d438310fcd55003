"""What makes room in the cache of base images, in which order, and all that keeps a base from it."""

import asyncio
import os
import time
from pathlib import Path

import pytest
from remuda_core.errors import Reason, RemudaError

from tests.unit.agent_base_cache.conftest import HOST, PAGE, CachingHost, Sample, Shelf

SAMPLES = [Sample(number=number, pages=4) for number in range(5)]
DAY = 86400.0


async def made(root: Path, *, images: int = 2, **changes: object) -> CachingHost:
    """With room for so many images."""
    root.mkdir(exist_ok=True)
    fields: dict[str, object] = {"root": root, "bound": images * 4 * PAGE, "shelf": Shelf(SAMPLES), **changes}
    return await CachingHost(**fields).restarted()  # type: ignore[arg-type]


async def used_long_ago(host: CachingHost, guest: int, sample: Sample, age: float) -> None:
    """By a guest that has gone."""
    await host.lay(guest, sample)
    await host.remove(guest)
    os.utime(host.base(sample), (time.time() - age, time.time() - age))


async def test_what_was_used_least_recently_makes_room_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    host = await made(tmp_path / "pool")
    await used_long_ago(host, 0, SAMPLES[0], 100)
    await used_long_ago(host, 1, SAMPLES[1], 300)
    host = await host.restarted()
    await host.lay(2, SAMPLES[2])
    assert host.there() == {0, 2}
    assert not host.base(SAMPLES[1]).with_suffix(".manifest").exists()
    assert (host.value("evictions_total"), host.value("overruns_total")) == (1, 0)
    await host.lay(3, SAMPLES[0])
    assert (host.value("hits_total"), host.value("misses_total")) >= (1, 3)
    assert host.value("fetched_bytes_total") == 3 * 4 * PAGE
    assert host.value("bytes") <= host.value("bound_bytes") == 2 * 4 * PAGE


async def test_a_base_that_a_disk_lies_on_stays_and_the_launch_goes_on_over_the_bound(tmp_path: Path) -> None:
    host = await made(tmp_path / "pool")
    for guest in range(3):
        await host.lay(guest, SAMPLES[guest])
    assert host.there() == {0, 1, 2}
    assert host.value("overruns_total") == 1
    await host.remove(1)
    await host.cache.tend(host.pool)
    assert host.there() == {0, 2}


async def test_a_base_that_was_asked_for_is_kept_until_its_disk_is_laid_or_the_launch_undone(
    tmp_path: Path,
) -> None:
    host = await made(tmp_path / "pool", images=1)
    await host.ensure(0, SAMPLES[0])
    await host.ensure(1, SAMPLES[1])
    await host.cache.tend(host.pool)
    assert host.there() == {0, 1}
    await host.leave(0)
    await host.cache.tend(host.pool)
    assert host.there() == {1}
    await host.lay(1, SAMPLES[1])
    await host.ensure(2, SAMPLES[2])
    assert host.there() == {1, 2}


async def test_a_base_that_has_gone_between_two_steps_of_a_launch_is_fetched_again(tmp_path: Path) -> None:
    host = await made(tmp_path / "pool", images=1)
    await host.ensure(0, SAMPLES[0])
    host = await host.restarted()
    await host.ensure(1, SAMPLES[1])
    assert host.there() == {1}
    await host.lay(0, SAMPLES[0])
    assert host.there() == {0, 1}
    assert host.shelf.fetched == [0, 1, 0]


async def test_a_base_that_somebody_reads_stays(tmp_path: Path) -> None:
    host = await made(tmp_path / "pool", images=1)
    await used_long_ago(host, 0, SAMPLES[0], 100)
    with host.promises.holding(host.base(SAMPLES[0])):
        await host.lay(1, SAMPLES[1])
        assert host.there() == {0, 1}
    await host.cache.tend(host.pool)
    assert host.there() == {1}


async def test_a_base_that_is_being_fetched_counts_and_stays(tmp_path: Path) -> None:
    host = await made(tmp_path / "pool", images=2)
    await used_long_ago(host, 0, SAMPLES[0], 100)
    host.shelf.gate.clear()
    first = asyncio.create_task(host.lay(1, SAMPLES[1]))
    second = asyncio.create_task(host.lay(2, SAMPLES[2]))
    async with asyncio.timeout(60):
        while len(host.shelf.fetched) < 3:
            await asyncio.sleep(0.01)
    # Both fit only without the old one, although nothing of them is there yet.
    assert host.there() == set()
    host.shelf.gate.set()
    await asyncio.gather(first, second)
    assert host.there() == {1, 2}
    assert host.value("overruns_total") == 0


async def test_the_time_of_last_use_goes_on_as_long_as_a_disk_lies_on_it(tmp_path: Path) -> None:
    host = await made(tmp_path / "pool")
    await host.lay(0, SAMPLES[0])
    os.utime(host.base(SAMPLES[0]), (0, 0))
    await host.cache.tend(host.pool)
    assert host.base(SAMPLES[0]).stat().st_mtime > time.time() - 3600


async def test_when_guests_have_left_the_bound_is_kept_without_anybody_asking(tmp_path: Path) -> None:
    host = await made(tmp_path / "pool", images=1)
    for guest in range(2):
        await host.lay(guest, SAMPLES[guest])
    tending = asyncio.create_task(host.cache.run())
    try:
        await host.remove(0)
        async with asyncio.timeout(60):
            while host.there() != {1}:
                await asyncio.sleep(0.05)
    finally:
        tending.cancel()
        await asyncio.gather(tending, return_exceptions=True)


async def test_old_parts_go_and_young_ones_and_those_in_use_stay(tmp_path: Path) -> None:
    host = await made(tmp_path / "pool", images=100)
    old = time.time() - 2 * DAY
    parts = [host.base(sample).with_suffix(f".{HOST}.partial") for sample in SAMPLES[:3]]
    for part in parts:
        part.write_bytes(bytes(PAGE))
        os.utime(part, (old, old))
    os.utime(parts[1])
    strayed = host.base(SAMPLES[4]).with_suffix(".manifest")
    strayed.touch()
    os.utime(strayed, (old, old))
    with host.promises.holding(host.base(SAMPLES[2])):
        await host.cache.tend(host.pool)
    assert [part.exists() for part in parts] == [False, True, True]
    assert not strayed.exists()


async def test_parts_count_and_make_room_like_bases(tmp_path: Path) -> None:
    host = await made(tmp_path / "pool", images=1)
    part = host.base(SAMPLES[3]).with_suffix(f".{HOST}.partial")
    part.write_bytes(b"x" * PAGE)
    await host.lay(0, SAMPLES[0])
    assert not part.exists()
    assert host.value("evictions_total") == 0


async def test_nothing_but_this_hosts_own_parts_is_removed_from_a_shared_pool(tmp_path: Path) -> None:
    host = await made(tmp_path / "pool", images=1, shared=True)
    await used_long_ago(host, 0, SAMPLES[0], 2 * DAY)
    old = time.time() - 2 * DAY
    mine = host.base(SAMPLES[3]).with_suffix(f".{HOST}.partial")
    theirs = host.base(SAMPLES[4]).with_suffix(".another-host.partial")
    for part in (mine, theirs):
        part.write_bytes(b"x")
        os.utime(part, (old, old))
    await host.lay(1, SAMPLES[1])
    await host.cache.tend(host.pool)
    assert host.there() == {0, 1}
    assert (mine.exists(), theirs.exists()) == (False, True)


async def test_a_pool_without_room_evicts_whatever_it_can_and_then_says_so(tmp_path: Path) -> None:
    host = await made(tmp_path / "pool", images=100, least_free_bytes=1 << 62)
    await host.restarted()
    host.base(SAMPLES[0]).write_bytes(b"unused")
    with pytest.raises(RemudaError) as caught:
        await host.lay(1, SAMPLES[1])
    assert caught.value.reason is Reason.DISK_FULL
    assert host.there() == set()
    assert host.shelf.fetched == []


async def test_a_pool_that_cannot_be_looked_through_loses_nothing_and_the_launch_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = await made(tmp_path / "pool", images=1)
    await used_long_ago(host, 0, SAMPLES[0], 100)

    def broken(*_: object) -> None:
        raise OSError("the file server has gone")

    monkeypatch.setattr("remuda_agent.base_cache.cache.backing_files", broken)
    await host.lay(1, SAMPLES[1])
    await host.cache.tend(host.pool)
    assert host.there() == {0, 1}
