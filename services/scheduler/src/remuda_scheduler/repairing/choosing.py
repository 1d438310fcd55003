"""Which hosts are asked for the chunks of an image, and in which order. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from remuda_core.ids import HostId, ImageId

MOST_HOSTS = 16
"""Asked for one image in one round; the next round asks others."""


def hosts_to_ask(up: Collection[HostId], having: Collection[HostId], rounds: int) -> list[HostId]:
    """Those with guests of the image first: its base cannot have been evicted there. Then the others, where
    it may be left from a guest that has gone. When they are many, each comes in its turn.
    """
    first = _turn(sorted(set(up) & set(having)), MOST_HOSTS // 2, rounds)
    return first + _turn(sorted(set(up) - set(having)), MOST_HOSTS - len(first), rounds)


def _turn(hosts: list[HostId], most: int, rounds: int) -> list[HostId]:
    start = rounds * most % len(hosts) if hosts else 0
    return (hosts[start:] + hosts[:start])[:most]


def by_image(
    images_of: Mapping[str, Sequence[ImageId]], usable: Collection[ImageId]
) -> dict[ImageId, list[str]]:
    """Digests of chunks by image, the one with the most first: as few orders as possible."""
    found: dict[ImageId, list[str]] = {}
    for digest, images in images_of.items():
        for image in images:
            if image in usable:
                found.setdefault(image, []).append(digest)
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))
