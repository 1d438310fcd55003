"""The bench of transfers: rounds of one by each way, in turns. Round 0 is a warm-up and not counted."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from remuda_bench import machine
from remuda_bench.images.figures import Transfer, Transfers
from remuda_bench.images.stand import Stand, stand
from remuda_bench.images.taking import Taking, Tell
from remuda_bench.images.transfers import Content, Way, make_disk, run


def order(number: int) -> Sequence[Way]:
    """Each way is first, second and third equally often in any six rounds."""
    return tuple(itertools.permutations(Way))[number % 6]


def run_transfers(runs: int, disk_bytes: int, contents: Sequence[Content], *, tell: Tell) -> Transfers:
    """Raises ValueError when other bytes come back than were sent."""
    taking = Taking()
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="remuda-bench-"))
        place = stack.enter_context(stand(Path(directory)))
        tell("etcd, api, image store and the plain stream are up")
        transfers = [
            one
            for content in contents
            for number in range(runs + 1)
            for one in _round(place, content, number, disk_bytes, tell)
        ]
    return Transfers(
        taken=taking.end(machine=machine.bare(), runs=runs), disk_bytes=disk_bytes, transfers=transfers
    )


def _round(place: Stand, content: Content, number: int, disk_bytes: int, tell: Tell) -> Iterator[Transfer]:
    disk = place.directory / "disk"
    make_disk(content, disk_bytes, disk, number)
    for way in order(number):
        up, down = run(place, way, disk, name=f"{content.name.lower()}-{number}")
        tell(f"{content}, run {number}, {way}: up {up:.1f} s, down {down:.1f} s")
        yield Transfer(run=number, content=content, way=way, upload_seconds=up, download_seconds=down)
