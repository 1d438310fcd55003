"""The bench of images: its order, its disks, its figures as JSON and as tables. No times."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from remuda_bench.images.figures import (
    Burst,
    Cache,
    Figures,
    Launch,
    Launches,
    Snapshot,
    Snapshots,
    Starter,
    Taken,
    Transfer,
    Transfers,
    from_json,
    to_json,
)
from remuda_bench.images.launches import at_once, fetched_bytes
from remuda_bench.images.report import report
from remuda_bench.images.rounds import order
from remuda_bench.images.transfers import MIB, Content, Way, make_disk
from remuda_core.telemetry.metrics import Metrics

TAKEN = Taken(
    date="2026-01-02T03:04:05+00:00",
    machine={"processors": "2"},
    load={"at the start": 0.25, "at the end": 1.5},
    took_seconds=300.0,
    runs=1,
)


def transfers(upload: float) -> Transfers:
    """Remuda's upload takes so long, the plain stream's one second."""
    return Transfers(
        taken=TAKEN,
        disk_bytes=100 * MIB,
        transfers=[
            Transfer(run=run, content=Content.NOISE, way=way, upload_seconds=seconds, download_seconds=1.0)
            for run in (0, 1)
            for way, seconds in ((Way.REMUDA, upload if run else 99.0), (Way.PLAIN, 1.0), (Way.CP, 0.5))
        ],
    )


def snapshots(second_sent_mib: int) -> Snapshots:
    """The first sends 500 MiB."""
    first = Snapshot(
        run=1,
        ordinal=1,
        admitted_seconds=0.02,
        seconds=8.0,
        touched_bytes=600 * MIB,
        read_bytes=600 * MIB,
        deduplicated_bytes=100 * MIB,
        sent_bytes=500 * MIB,
        stored_bytes=500 * MIB,
        incremental=False,
        consistency="FILESYSTEM",
        backup_seconds=4.0,
        backup_bytes=520 * MIB,
    )
    second = replace(
        first, ordinal=2, seconds=1.0, sent_bytes=second_sent_mib * MIB, incremental=True, backup_seconds=5.0
    )
    return Snapshots(
        taken=TAKEN,
        disk_bytes=2048 * MIB,
        data_bytes=500 * MIB,
        changed_bytes=25 * MIB,
        memory_mib=160,
        snapshots=[second, first],
    )


def burst(starter: Starter, cache: Cache, *seconds: float, run: int = 1) -> Burst:
    """Every third host has a guest more; the store sends 100 MiB to each when it has to."""
    admitted = 0.5 if starter is Starter.REMUDA else None
    launches = [
        Launch(host=f"host{number % 3}", admitted_seconds=admitted, running_seconds=after)
        for number, after in enumerate(seconds)
    ]
    made = Burst(run=run, starter=starter, cache=cache, launches=launches, store_sent_bytes=0)
    return replace(made, store_sent_bytes=100 * MIB * made.hosts) if cache is Cache.COLD else made


def launches() -> Launches:
    return Launches(
        taken=TAKEN,
        image_bytes=256 * MIB,
        image_stored_bytes=100 * MIB,
        memory_mib=96,
        hosts=3,
        bursts=[
            burst(Starter.REMUDA, Cache.COLD, 77.0, 88.0, 99.0, 99.0, run=0),
            burst(Starter.REMUDA, Cache.COLD, 5.0),
            burst(Starter.REMUDA, Cache.COLD, 4.0, 6.0, 8.0, 10.0),
            burst(Starter.REMUDA, Cache.WARM, 1.0),
            burst(Starter.REMUDA, Cache.WARM, 4.0, 1.0, 3.0, 2.0),
            burst(Starter.LIBVIRT, Cache.WARM, 0.5),
            burst(Starter.LIBVIRT, Cache.WARM, 1.0, 2.0, 0.5, 1.5),
        ],
    )


def row(figures: Figures, title: str) -> list[str]:
    """Cells of the row that is called so, and the title."""
    line = next(line for line in report(figures).splitlines() if line.startswith(f"| {title} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_each_way_goes_first_second_and_third_equally_often() -> None:
    for place in range(3):
        assert Counter(order(number)[place] for number in range(6)) == dict.fromkeys(Way, 2)


def test_figures_come_back_from_json_and_other_documents_do_not() -> None:
    made = Figures(transfers=transfers(1.5), snapshots=snapshots(30), launches=launches())
    assert from_json(to_json(made)) == made
    for section in (replace(made, launches=None), replace(made, transfers=None), Figures()):
        assert from_json(to_json(section)) == section
    for text in ("[]", '{"version": 1}', '{"version": 2, "other": {}}', '{"version": 2, "launches": {}}'):
        with pytest.raises(ValueError, match="figures"):
            from_json(text)


def test_a_section_that_is_measured_again_leaves_the_others_alone() -> None:
    kept = Figures(transfers=transfers(1.0), snapshots=snapshots(30))
    updated = kept.updated(Figures(snapshots=snapshots(20), launches=launches()))
    assert updated == Figures(transfers=kept.transfers, snapshots=snapshots(20), launches=launches())


def test_what_was_not_measured_is_said_to_be_so() -> None:
    text = report(Figures(snapshots=snapshots(30)))
    assert text.count("Not measured") == 2
    assert "`remuda-bench images --only transfers`" in text
    assert "`remuda-bench images --only launches`" in text


@pytest.mark.parametrize(("seconds", "verdict"), [(1.25, "met"), (2.0, "MISSED")])
def test_an_aim_is_judged_by_the_ratio_to_the_plain_stream_without_the_warm_up(
    seconds: float, verdict: str
) -> None:
    cells = row(Figures(transfers=transfers(seconds)), "upload")
    assert cells[1] == f"{100 / seconds:.0f} ({100 / seconds:.0f} to {100 / seconds:.0f})"
    assert cells[-1] == f">= 0.6 of the plain stream: {verdict}"


@pytest.mark.parametrize(("sent_mib", "verdict"), [(40, "met"), (41, "MISSED")])
def test_the_second_snapshot_is_judged_by_the_bytes_that_the_first_sent(sent_mib: int, verdict: str) -> None:
    figures = Figures(snapshots=snapshots(sent_mib))
    _, first, second, ratio, aim = row(figures, "sent, MiB")
    assert first.startswith("500.0 ")
    assert second.startswith(f"{sent_mib}.0 ")
    assert ratio.startswith(f"{sent_mib / 500:.3f} ")
    assert aim == f"<= 0.08: {verdict}"
    assert row(figures, "request -> DONE, s")[3].startswith("0.125 ")
    beside = row(figures, "Remuda's seconds / those of the full backup")
    assert [cell.partition(" ")[0] for cell in beside[1:3]] == ["2.00", "0.20"]
    assert "25 MiB of it (5%)" in report(figures)
    assert "Second: FILESYSTEM, 1 of 1 with the checkpoint" in report(figures)


def test_launches_are_told_by_their_first_middle_and_last_and_beside_libvirt_alone() -> None:
    figures = Figures(launches=launches())

    def medians(title: str) -> list[str]:
        return [cell.partition(" ")[0] for cell in row(figures, title)[1:]]

    assert medians("one guest") == ["5.00", "1.00", "0.50", "2.00"]
    assert medians("4 at once: the first") == ["4.00", "1.00", "0.50", "2.00"]
    assert medians("4 at once: half of them") == ["6.00", "2.00", "1.00", "2.00"]
    assert medians("4 at once: all") == ["10.00", "4.00", "2.00", "2.00"]
    assert medians("4 at once / one") == ["2.00", "4.00", "4.00", ""]
    assert medians("answers to all 4 requests") == ["0.50", "0.50", "", ""]
    assert medians("4 at once: sent, MiB") == ["300.0", "0.0"]
    assert medians("hosts that the 4 were on") == ["3", "3"]
    assert medians("sent to each host / the image as it is stored") == ["1.00", "0.00"]


def test_what_starts_at_once_starts_with_one_clock_and_fails_with_one() -> None:
    began = at_once(range(4), lambda thing, at: (thing, at), rest_seconds=0)
    assert [thing for thing, _ in began] == [0, 1, 2, 3]
    assert len({at for _, at in began}) == 1

    def fails(thing: int, _: float) -> None:
        if thing == 2:
            raise ValueError("the third")

    with pytest.raises(ValueError, match="the third"):
        at_once(range(4), fails, rest_seconds=0)


def test_only_what_hosts_fetched_counts_as_sent_by_the_image_store() -> None:
    metrics = Metrics()
    for kind, size in (("fetched", 5 * MIB), ("filled", 7 * MIB)):
        metrics.image_bytes.labels(kind).inc(size)
    assert fetched_bytes(metrics.render().decode()) == 5 * MIB
    assert fetched_bytes(Metrics().render().decode()) == 0


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
