"""One fetch however many wait: who may leave, and what the others get."""

import asyncio
from pathlib import Path

import pytest
from remuda_core.errors import Reason, RemudaError

from tests.unit.agent_base_cache.conftest import CachingHost, Sample, Shelf

SAMPLE = Sample(number=0, pages=1)


async def waiting(root: Path, guests: int) -> tuple[CachingHost, list[asyncio.Task[None]]]:
    """A host that fetches one image for so many launches."""
    root.mkdir()
    host = await CachingHost(root=root, bound=1 << 30, shelf=Shelf([SAMPLE])).restarted()
    host.shelf.gate.clear()
    tasks = [asyncio.create_task(host.ensure(guest, SAMPLE)) for guest in range(guests)]
    async with asyncio.timeout(60):
        while host.value("hits_total") < guests - 1 or not host.shelf.fetched:
            await asyncio.sleep(0.01)
    return host, tasks


async def test_the_first_to_leave_does_not_end_the_fetch_of_the_others(tmp_path: Path) -> None:
    host, tasks = await waiting(tmp_path / "pool", 3)
    await host.leave(0)
    with pytest.raises(RemudaError) as caught:
        await tasks[0]
    assert caught.value.reason is Reason.CANCELLED
    host.shelf.gate.set()
    await asyncio.gather(*tasks[1:])
    assert host.shelf.fetched == [0]


async def test_the_last_to_leave_ends_it_and_who_comes_later_begins_another(tmp_path: Path) -> None:
    host, tasks = await waiting(tmp_path / "pool", 2)
    for guest in range(2):
        await host.leave(guest)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert host.there() == set()
    host.shelf.gate.set()
    await host.ensure(5, SAMPLE)
    assert host.shelf.fetched == [0, 0]


async def test_a_fetch_that_fails_gives_everybody_the_same_answer_and_the_next_try_is_a_new_one(
    tmp_path: Path,
) -> None:
    host, tasks = await waiting(tmp_path / "pool", 4)
    host.shelf.failures.append(RemudaError(Reason.STORE_UNAVAILABLE, "nobody answers"))
    host.shelf.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert {answer.reason for answer in answers if isinstance(answer, RemudaError)} == {
        Reason.STORE_UNAVAILABLE
    }
    assert len(answers) == 4
    assert host.shelf.fetched == [0]
    await host.ensure(9, SAMPLE)
    assert host.there() == {0}


async def test_a_grant_that_has_expired_is_that_of_one_launch_and_another_one_is_tried(
    tmp_path: Path,
) -> None:
    host, tasks = await waiting(tmp_path / "pool", 3)
    host.shelf.failures.append(RemudaError(Reason.GRANT_REFUSED, "it has expired"))
    host.shelf.gate.set()
    await asyncio.gather(*tasks)
    assert len(set(host.shelf.asked_by)) == 2
    assert host.there() == {0}
