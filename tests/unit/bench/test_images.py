"""The bench of images: its order, its disks, its figures as JSON and as tables. No times."""

from collections import Counter
from pathlib import Path

import pytest
import zstandard
from remuda_bench.images.figures import Figures, Transfer, from_json, to_json
from remuda_bench.images.report import report
from remuda_bench.images.rounds import order
from remuda_bench.images.transfers import MIB, Content, Way, make_disk


def figures(upload: float) -> Figures:
    """Remuda's upload takes so long, the plain stream's one second."""
    return Figures(
        date="2026-01-02T03:04:05+00:00",
        machine={"processors": "2"},
        load={"at the start": 0.25, "at the end": 1.5},
        took_seconds=300.0,
        runs=1,
        disk_bytes=100 * MIB,
        transfers=[
            Transfer(run=run, content=Content.NOISE, way=way, upload_seconds=seconds, download_seconds=1.0)
            for run in (0, 1)
            for way, seconds in ((Way.REMUDA, upload if run else 99.0), (Way.PLAIN, 1.0), (Way.CP, 0.5))
        ],
    )


def test_each_way_goes_first_second_and_third_equally_often() -> None:
    for place in range(3):
        assert Counter(order(number)[place] for number in range(6)) == dict.fromkeys(Way, 2)


def test_figures_come_back_from_json_and_other_documents_do_not() -> None:
    made = figures(1.5)
    assert from_json(to_json(made)) == made
    for text in ("[]", '{"version": 0}', '{"version": 1}'):
        with pytest.raises(ValueError, match="figures"):
            from_json(text)


@pytest.mark.parametrize(("seconds", "verdict"), [(1.25, "met"), (2.0, "MISSED")])
def test_an_aim_is_judged_by_the_ratio_to_the_plain_stream_without_the_warm_up(
    seconds: float, verdict: str
) -> None:
    row = next(line for line in report(figures(seconds)).splitlines() if line.startswith("| upload"))
    assert f"| {100 / seconds:.0f} ({100 / seconds:.0f} to {100 / seconds:.0f}) |" in row
    assert row.endswith(f">= 0.6 of the plain stream: {verdict} |")


def test_disks_are_as_compressible_as_they_are_called_and_differ_by_seed(tmp_path: Path) -> None:
    sizes = {}
    for content in Content:
        for seed in (1, 2):
            make_disk(content, 2 * MIB, tmp_path / f"{content.name}{seed}", seed)
        one, two = ((tmp_path / f"{content.name}{seed}").read_bytes() for seed in (1, 2))
        assert len(one) == 2 * MIB
        assert one != two
        sizes[content] = len(zstandard.ZstdCompressor(level=1).compress(one))
    assert sizes[Content.NOISE] >= 2 * MIB
    assert 0.9 * MIB < sizes[Content.HALF] < 1.2 * MIB
