"""Figures of the bench of images as Markdown tables. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from remuda_bench.images.cells import about, head, ratio, row, told, values
from remuda_bench.images.figures import (
    Burst,
    Cache,
    Figures,
    Launches,
    Section,
    Snapshot,
    Snapshots,
    Starter,
    Transfer,
    Transfers,
)
from remuda_bench.images.transfers import MIB, Content, Way
from remuda_bench.spread import ratios

UPLOAD_AIM, DOWNLOAD_AIM = 0.6, 0.7
SECOND_AIM = 0.08
"""Of the bytes that the first snapshot sent."""

TITLES = {
    Section.TRANSFERS: "Transfers",
    Section.SNAPSHOTS: "Two snapshots of a running guest",
    Section.LAUNCHES: "Launches from one image",
}


def report(figures: Figures) -> str:
    """Each section under a heading of its own, also those that were not measured."""
    lines: list[str] = []
    for section, title in TITLES.items():
        lines += ["", f"### {title}", "", *_section(figures, section)]
    return "\n".join(lines[1:]) + "\n"


def _section(figures: Figures, section: Section) -> Iterator[str]:
    if section is Section.TRANSFERS and figures.transfers is not None:
        yield from _transfers(figures.transfers)
    elif section is Section.SNAPSHOTS and figures.snapshots is not None:
        yield from _snapshots(figures.snapshots)
    elif section is Section.LAUNCHES and figures.launches is not None:
        yield from _launches(figures.launches)
    else:
        yield f"Not measured; `remuda-bench images --only {section}` does it."


# -- transfers ------------------------------------------------------------------------------------------


def _transfers(figures: Transfers) -> Iterator[str]:
    yield from about(figures.taken, f" of each, disks of {figures.disk_bytes // MIB} MiB.")
    yield "MiB/s; median (least to most). Ratios are taken run by run: more than 1 is faster."
    for content in Content:
        if figures.counted(content, Way.REMUDA):
            yield from ("", f"#### {content.capitalize()} disk", "", *_contents(figures, content))


def _contents(figures: Transfers, content: Content) -> Iterator[str]:
    found = {way: figures.counted(content, way) for way in Way}
    yield from head("", "Remuda", "plain stream", "`cp`", "Remuda / plain stream", "Remuda / `cp`", "aim")
    rows: tuple[tuple[str, Callable[[Transfer], float], float], ...] = (
        ("upload", lambda one: one.upload_seconds, UPLOAD_AIM),
        ("download", lambda one: one.download_seconds, DOWNLOAD_AIM),
    )
    for title, seconds, aim in rows:
        rates = {way: [figures.disk_bytes / MIB / seconds(one) for one in found[way]] for way in Way}
        beside_plain = ratios(rates[Way.REMUDA], rates[Way.PLAIN])
        met = beside_plain is not None and beside_plain.median >= aim
        yield row(
            title,
            *(values(rates[way], 0) for way in (Way.REMUDA, Way.PLAIN, Way.CP)),
            told(beside_plain, 2),
            ratio(rates[Way.REMUDA], rates[Way.CP]),
            _verdict(f">= {aim} of the plain stream", met),
        )


# -- snapshots ------------------------------------------------------------------------------------------


def _snapshots(figures: Snapshots) -> Iterator[str]:
    first, second = figures.of(1), figures.of(2)
    share = figures.changed_bytes / figures.data_bytes
    yield from about(figures.taken, ", each with a guest of its own.")
    yield (
        f"Guest: 1 vCPU, {figures.memory_mib} MiB, disk of {figures.disk_bytes // MIB} MiB; before the first"
        f" a file of {figures.data_bytes // MIB} MiB that do not compress was written into a new file system,"
        f" before the second {figures.changed_bytes // MIB} MiB of it ({share:.0%}) anew, in one piece."
        " Median (least to most); ratios are taken run by run."
    )
    yield ""
    yield from head("", "first", "second", "second / first", "aim")
    sent = ratios([one.sent_bytes for one in second], [one.sent_bytes for one in first])
    met = sent is not None and sent.median <= SECOND_AIM
    aims = {"sent, MiB": _verdict(f"<= {SECOND_AIM}", met)}
    for title, measure, digits in _MEASURES:
        ours = [[measure(one) for one in taken] for taken in (first, second)]
        yield row(
            title,
            *(values(found, digits) for found in ours),
            ratio(ours[1], ours[0], 3),
            aims.get(title, ""),
        )
    backups = [ratio(map(_seconds, taken), map(_backup, taken)) for taken in (first, second)]
    yield row("Remuda's seconds / those of the full backup", *backups, "", "")
    yield ""
    words = [
        f"{name}: {', '.join(sorted({one.consistency for one in taken}))},"
        f" {sum(one.incremental for one in taken)} of {len(taken)} with the checkpoint of an earlier one"
        for name, taken in (("First", first), ("Second", second))
    ]
    yield f"{'. '.join(words)}."


def _seconds(one: Snapshot) -> float:
    return one.seconds


def _backup(one: Snapshot) -> float:
    return one.backup_seconds


_MEASURES: tuple[tuple[str, Callable[[Snapshot], float], int], ...] = (
    ("touched, MiB", lambda one: one.touched_bytes / MIB, 1),
    ("read, MiB", lambda one: one.read_bytes / MIB, 1),
    ("deduplicated or zero, MiB", lambda one: one.deduplicated_bytes / MIB, 1),
    ("sent, MiB", lambda one: one.sent_bytes / MIB, 1),
    ("stored, MiB", lambda one: one.stored_bytes / MIB, 1),
    ("request -> answer, ms", lambda one: one.admitted_seconds * 1000, 0),
    ("request -> DONE, s", _seconds, 2),
    ("full backup by libvirt alone, s", _backup, 2),
    ("its file, MiB", lambda one: one.backup_bytes / MIB, 1),
)


# -- launches -------------------------------------------------------------------------------------------


def _launches(figures: Launches) -> Iterator[str]:
    many = figures.most
    kinds = ((Starter.REMUDA, Cache.COLD), (Starter.REMUDA, Cache.WARM), (Starter.LIBVIRT, Cache.WARM))
    one = [figures.counted(*kind, 1) for kind in kinds]
    all_ = [figures.counted(*kind, many) for kind in kinds]
    yield from about(figures.taken, " after a warm-up.")
    yield (
        f"Guests of 1 vCPU and {figures.memory_mib} MiB, on {figures.hosts} hosts that are this one machine,"
        f" from an image of {figures.image_bytes // MIB} MiB, stored as"
        f" {figures.image_stored_bytes / MIB:.1f} MiB."
        " Seconds from the request of all to RUNNING; median (least to most); ratios are taken run by run."
    )
    yield ""
    yield from head("", "Remuda, cold cache", "Remuda, warm cache", "libvirt alone", "Remuda warm / libvirt")
    yield _timed("one guest", one, _last)
    yield _timed(f"{many} at once: the first", all_, _first)
    yield _timed(f"{many} at once: half of them", all_, _middle)
    yield _timed(f"{many} at once: all", all_, _last)
    grown = [ratio(map(_last, ten), map(_last, single)) for ten, single in zip(all_, one, strict=True)]
    yield row(f"{many} at once / one", *grown, "")
    yield row(
        f"answers to all {many} requests", *(values(map(_answered, ten), 2) for ten in all_[:2]), "", ""
    )
    yield ""
    yield from head("image store -> hosts", "cold cache", "warm cache")
    for title, bursts in (("one guest", one), (f"{many} at once", all_)):
        yield row(f"{title}: sent, MiB", *(values(_sent(found)) for found in bursts[:2]))
    yield row(f"hosts that the {many} were on", *(values((b.hosts for b in ten), 0) for ten in all_[:2]))
    times = [
        values((b.store_sent_bytes / b.hosts / figures.image_stored_bytes for b in ten), 2)
        for ten in all_[:2]
    ]
    yield row("sent to each host / the image as it is stored", *times)


def _timed(title: str, kinds: Sequence[Sequence[Burst]], seconds: Callable[[Burst], float]) -> str:
    found = [[seconds(burst) for burst in bursts] for bursts in kinds]
    return row(title, *(values(one, 2) for one in found), ratio(found[1], found[2]))


def _first(burst: Burst) -> float:
    return min(one.running_seconds for one in burst.launches)


def _middle(burst: Burst) -> float:
    """When half of them run, or one more."""
    times = sorted(one.running_seconds for one in burst.launches)
    return times[(len(times) - 1) // 2]


def _last(burst: Burst) -> float:
    return burst.all_running_seconds


def _answered(burst: Burst) -> float:
    return max(one.admitted_seconds or 0.0 for one in burst.launches)


def _sent(bursts: Sequence[Burst]) -> list[float]:
    return [burst.store_sent_bytes / MIB for burst in bursts]


def _verdict(words: str, met: bool) -> str:
    return f"{words}: {'met' if met else 'MISSED'}"
