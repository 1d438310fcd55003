"""Figures of the bench of images as Markdown tables. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from remuda_bench.images.figures import Figures, Transfer
from remuda_bench.images.transfers import MIB, Content, Way
from remuda_bench.spread import Spread, ratios, spread

UPLOAD_AIM, DOWNLOAD_AIM = 0.6, 0.7

Seconds = Callable[[Transfer], float]


def report(figures: Figures) -> str:
    return "\n".join(_lines(figures)) + "\n"


def _lines(figures: Figures) -> Iterator[str]:
    machine = ", ".join(f"{name} {value}" for name, value in figures.machine.items())
    load = ", ".join(f"{value:.1f} {when}" for when, value in figures.load.items())
    yield (
        f"Taken {figures.date} in {figures.took_seconds:.0f} s, {figures.runs} runs of each,"
        f" disks of {figures.disk_bytes // MIB} MiB."
    )
    yield f"Machine: {machine}. Load average {load}."
    yield "MiB/s; median (least to most). Ratios are taken run by run: more than 1 is faster."
    for content in Content:
        if figures.counted(content, Way.REMUDA):
            yield from ("", f"### {content.capitalize()} disk", "", *_table(figures, content))


def _table(figures: Figures, content: Content) -> Iterator[str]:
    found = {way: figures.counted(content, way) for way in Way}
    yield "| | Remuda | plain stream | `cp` | Remuda / plain stream | Remuda / `cp` | aim |"
    yield "|---|---|---|---|---|---|---|"
    rows: tuple[tuple[str, Seconds, float], ...] = (
        ("upload", lambda one: one.upload_seconds, UPLOAD_AIM),
        ("download", lambda one: one.download_seconds, DOWNLOAD_AIM),
    )
    for title, seconds, aim in rows:
        rates = {way: _rates(figures, found[way], seconds) for way in Way}
        beside_plain = ratios(rates[Way.REMUDA], rates[Way.PLAIN])
        cells = [
            title,
            *(_whole(spread(rates[way])) for way in (Way.REMUDA, Way.PLAIN, Way.CP)),
            _ratio(beside_plain),
            _ratio(ratios(rates[Way.REMUDA], rates[Way.CP])),
            _verdict(beside_plain, aim),
        ]
        yield f"| {' | '.join(cells)} |"


def _rates(figures: Figures, transfers: Sequence[Transfer], seconds: Seconds) -> list[float | None]:
    return [figures.disk_bytes / MIB / seconds(one) for one in transfers]


def _verdict(found: Spread | None, aim: float) -> str:
    words = f">= {aim} of the plain stream"
    return words if found is None else f"{words}: {'met' if found.median >= aim else 'MISSED'}"


def _whole(found: Spread | None) -> str:
    return "unknown" if found is None else f"{found.median:.0f} ({found.least:.0f} to {found.most:.0f})"


def _ratio(found: Spread | None) -> str:
    return "unknown" if found is None else f"{found.median:.2f} ({found.least:.2f} to {found.most:.2f})"
