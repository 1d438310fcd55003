"""What the bench of images measures, as data that goes to a JSON file and comes back.

The document has up to three sections, each with its own date, machine and load: one can be taken again while
the others stay.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from remuda_bench.images.transfers import Content, Way

VERSION = 2
"""Of the JSON document."""


class Section(enum.StrEnum):
    """What can be measured alone."""

    TRANSFERS = "transfers"
    SNAPSHOTS = "snapshots"
    LAUNCHES = "launches"


class Cache(enum.StrEnum):
    """Whether the hosts have the image when guests are launched from it."""

    COLD = "cold"
    WARM = "warm"


class Starter(enum.StrEnum):
    """Who starts guests."""

    REMUDA = "remuda"
    LIBVIRT = "libvirt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """When, where and how often."""

    date: str
    machine: Mapping[str, str]
    load: Mapping[str, float]
    """Load average over a minute, at the beginning and at the end."""
    took_seconds: float
    runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One disk up and down again."""

    run: int
    """From 1; 0 is the warm-up."""
    content: Content
    way: Way
    upload_seconds: float
    download_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfers:
    taken: Taken
    disk_bytes: int
    transfers: Sequence[Transfer]

    def counted(self, content: Content, way: Way) -> list[Transfer]:
        """In the order of the runs, without the warm-up."""
        found = [one for one in self.transfers if one.content is content and one.way is way and one.run > 0]
        return sorted(found, key=lambda one: one.run)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One image made of a running guest, and a full backup of the same disk by libvirt alone."""

    run: int
    """From 1. Each has a guest of its own."""
    ordinal: int
    """1: after the data were written; 2: after a part of them was written anew."""
    admitted_seconds: float
    """Request to answer."""
    seconds: float
    """Request to the end, as a client that watches the operation is told."""
    touched_bytes: int
    read_bytes: int
    deduplicated_bytes: int
    sent_bytes: int
    stored_bytes: int
    incremental: bool
    consistency: str
    """By its name in the API, without the prefix."""
    backup_seconds: float
    backup_bytes: int
    """Of the file that the backup filled, as the file system counts it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshots:
    taken: Taken
    disk_bytes: int
    """Of the guest, virtual."""
    data_bytes: int
    """One incompressible file, before the first."""
    changed_bytes: int
    """Of that file, in one piece, before the second."""
    memory_mib: int
    snapshots: Sequence[Snapshot]

    def of(self, ordinal: int) -> list[Snapshot]:
        """In the order of the runs."""
        found = [one for one in self.snapshots if one.ordinal == ordinal]
        return sorted(found, key=lambda one: one.run)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One guest of a burst; seconds since the burst began."""

    host: str
    admitted_seconds: float | None
    """None: libvirt admits nothing."""
    running_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst:
    """Guests that were asked for at the same moment."""

    run: int
    """From 1; 0 is the warm-up."""
    starter: Starter
    cache: Cache
    launches: Sequence[Launch]
    store_sent_bytes: int
    """By the image store to all hosts, as they travelled."""

    @property
    def all_running_seconds(self) -> float:
        return max(one.running_seconds for one in self.launches)

    @property
    def hosts(self) -> int:
        """On how many the guests are."""
        return len({one.host for one in self.launches})


@dataclass(frozen=True, slots=True, kw_only=True)
class Launches:
    taken: Taken
    image_bytes: int
    """As the guests see it."""
    image_stored_bytes: int
    memory_mib: int
    hosts: int
    """In the lab."""
    bursts: Sequence[Burst]

    def counted(self, starter: Starter, cache: Cache, guests: int) -> list[Burst]:
        """In the order of the runs, without the warm-up."""
        wanted = (starter, cache, guests)
        found = [
            one
            for one in self.bursts
            if (one.starter, one.cache, len(one.launches)) == wanted and one.run > 0
        ]
        return sorted(found, key=lambda one: one.run)

    @property
    def most(self) -> int:
        """Guests of the largest burst."""
        return max(len(one.launches) for one in self.bursts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """None: not measured."""

    transfers: Transfers | None = None
    snapshots: Snapshots | None = None
    launches: Launches | None = None

    def updated(self, newer: Figures) -> Figures:
        """With the sections that ``newer`` has in the place of its own."""
        return Figures(
            transfers=newer.transfers or self.transfers,
            snapshots=newer.snapshots or self.snapshots,
            launches=newer.launches or self.launches,
        )


def to_json(figures: Figures) -> str:
    """Rounded to what can be measured. Sections that are not there are left out."""
    raw = _rounded(dataclasses.asdict(figures))
    sections = {name: found for name, found in raw.items() if found is not None}
    return json.dumps({"version": VERSION, **sections}, indent=1) + "\n"


def from_json(text: str) -> Figures:
    """Raises ValueError for a document that is not one of ours."""
    raw = json.loads(text)
    if not isinstance(raw, dict) or raw.pop("version", None) != VERSION:
        raise ValueError(f"not figures of version {VERSION}")
    try:
        found = {Section(name): section for name, section in raw.items()}
        return Figures(
            transfers=_transfers(found[Section.TRANSFERS]) if Section.TRANSFERS in found else None,
            snapshots=_snapshots(found[Section.SNAPSHOTS]) if Section.SNAPSHOTS in found else None,
            launches=_launches(found[Section.LAUNCHES]) if Section.LAUNCHES in found else None,
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"not figures of a bench of images: {error!r}") from error


def _transfers(raw: dict[str, Any]) -> Transfers:
    transfers = [
        Transfer(**{**one, "content": Content(one["content"]), "way": Way(one["way"])})
        for one in raw.pop("transfers")
    ]
    return Transfers(taken=Taken(**raw.pop("taken")), transfers=transfers, **raw)


def _snapshots(raw: dict[str, Any]) -> Snapshots:
    snapshots = [Snapshot(**one) for one in raw.pop("snapshots")]
    return Snapshots(taken=Taken(**raw.pop("taken")), snapshots=snapshots, **raw)


def _launches(raw: dict[str, Any]) -> Launches:
    return Launches(taken=Taken(**raw.pop("taken")), bursts=[_burst(one) for one in raw.pop("bursts")], **raw)


def _burst(raw: dict[str, Any]) -> Burst:
    launches = [Launch(**one) for one in raw.pop("launches")]
    starter, cache = Starter(raw.pop("starter")), Cache(raw.pop("cache"))
    return Burst(launches=launches, starter=starter, cache=cache, **raw)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {str(key): _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return value
