"""The bench of images: rounds of one transfer by each way, in turns. Round 0 is a warm-up and not counted."""

from __future__ import annotations

import itertools
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from remuda_bench.images.figures import Figures, Transfer
from remuda_bench.images.stand import Stand, stand
from remuda_bench.images.transfers import Content, Way, make_disk, run


def order(number: int) -> Sequence[Way]:
    """Each way is first, second and third equally often in any six rounds."""
    return tuple(itertools.permutations(Way))[number % 6]


def run_bench(
    runs: int, disk_bytes: int, contents: Sequence[Content], *, tell: Callable[[str], None]
) -> Figures:
    """Raises ValueError when other bytes come back than were sent."""
    began, load = time.monotonic(), os.getloadavg()[0]
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
    return Figures(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=_machine(),
        load={"at the start": load, "at the end": os.getloadavg()[0]},
        took_seconds=time.monotonic() - began,
        runs=runs,
        disk_bytes=disk_bytes,
        transfers=transfers,
    )


def _round(
    place: Stand, content: Content, number: int, disk_bytes: int, tell: Callable[[str], None]
) -> Iterator[Transfer]:
    disk = place.directory / "disk"
    make_disk(content, disk_bytes, disk, number)
    for way in order(number):
        up, down = run(place, way, disk, name=f"{content.name.lower()}-{number}")
        tell(f"{content}, run {number}, {way}: up {up:.1f} s, down {down:.1f} s")
        yield Transfer(run=number, content=content, way=way, upload_seconds=up, download_seconds=down)


def _machine() -> Mapping[str, str]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processors": str(os.cpu_count()),
        "memory": f"{memory / (1 << 30):.0f} GiB",
        "kernel": platform.release(),
        "Python": platform.python_version(),
    }
