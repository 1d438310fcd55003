"""What the bench of images measures, as data that goes to a JSON file and comes back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from remuda_bench.images.transfers import Content, Way

VERSION = 1
"""Of the JSON document."""


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
class Figures:
    """One run of the program."""

    date: str
    machine: Mapping[str, str]
    load: Mapping[str, float]
    """Load average over a minute, at the beginning and at the end."""
    took_seconds: float
    runs: int
    disk_bytes: int
    transfers: Sequence[Transfer]

    def counted(self, content: Content, way: Way) -> list[Transfer]:
        """In the order of the runs, without the warm-up."""
        found = [one for one in self.transfers if one.content is content and one.way is way and one.run > 0]
        return sorted(found, key=lambda one: one.run)


def to_json(figures: Figures) -> str:
    return json.dumps({"version": VERSION, **_rounded(dataclasses.asdict(figures))}, indent=1) + "\n"


def from_json(text: str) -> Figures:
    """Raises ValueError for a document that is not one of ours."""
    raw = json.loads(text)
    if not isinstance(raw, dict) or raw.pop("version", None) != VERSION:
        raise ValueError(f"not figures of version {VERSION}")
    try:
        transfers = [
            Transfer(**{**one, "content": Content(one["content"]), "way": Way(one["way"])})
            for one in raw.pop("transfers")
        ]
        return Figures(transfers=transfers, **raw)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not figures of a bench of images: {error!r}") from error


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {str(key): _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return value
