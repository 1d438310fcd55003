"""Whatever launches, deletions, restarts and passes come, in whatever order and at once: no disk loses its
base, no launch fails for the bound, and the bound is kept whenever it can be.
"""

import asyncio
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.agent_base_cache.conftest import PAGE, CachingHost, Sample, Shelf

SAMPLES = [Sample(number=number, pages=1 + number % 3) for number in range(6)]
GUESTS = 6
BOUND = 5 * PAGE

guests = st.integers(0, GUESTS - 1)
images = st.integers(0, len(SAMPLES) - 1)
acts = st.one_of(
    st.tuples(st.just("ensure"), guests, images),
    st.tuples(st.just("launch"), guests, images),
    st.tuples(st.just("leave"), guests, st.just(0)),
    st.tuples(st.just("remove"), guests, st.just(0)),
    st.tuples(st.just("tend"), st.just(0), st.just(0)),
)
batches = st.lists(
    st.one_of(st.just(None), st.lists(acts, min_size=1, max_size=4, unique_by=lambda act: act[1])),
    max_size=14,
)


class Book:
    """What has to be so."""

    def __init__(self, host: CachingHost) -> None:
        self.host = host
        self.lies_on: dict[int, int] = {}
        self.promised: dict[int, int] = {}

    async def act(self, what: str, guest: int, image: int) -> None:
        match what:
            case "ensure":
                await self.host.ensure(guest, SAMPLES[image])
                self.promised[guest] = image
            case "launch":
                # A guest has one disk for life.
                image = self.lies_on.get(guest, image)
                await self.host.lay(guest, SAMPLES[image])
                self.promised.pop(guest, None)
                self.lies_on[guest] = image
            case "leave":
                await self.host.leave(guest)
                self.promised.pop(guest, None)
            case "remove":
                await self.host.remove(guest)
                self.lies_on.pop(guest, None)
            case _:
                await self.host.cache.tend(self.host.pool)

    def check(self) -> None:
        needed = {*self.lies_on.values(), *self.promised.values()}
        assert needed <= self.host.there()
        for image in needed:
            assert self.host.base(SAMPLES[image]).read_bytes() == SAMPLES[image].data

    def check_bound(self) -> None:
        needed = {*self.lies_on.values(), *self.promised.values()}
        there = self.host.there()
        assert sum(SAMPLES[image].bytes for image in there) <= BOUND or there <= needed


async def run(root: Path, sequence: list[list[tuple[str, int, int]] | None]) -> None:
    host = await CachingHost(root=root, bound=BOUND, shelf=Shelf(SAMPLES)).restarted()
    book = Book(host)
    for batch in sequence:
        if batch is None:
            await host.restarted()
            book.promised.clear()
        else:
            await asyncio.gather(*(book.act(*act) for act in batch))
        book.check()
        await host.cache.tend(host.pool)
        book.check()
        book.check_bound()


@settings(max_examples=60, deadline=None)
@given(batches)
def test_no_sequence_takes_a_base_from_under_a_disk(
    sequence: list[list[tuple[str, int, int]] | None],
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        pool = Path(directory) / "pool"
        pool.mkdir()
        asyncio.run(run(pool, sequence))
