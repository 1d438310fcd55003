"""The queue of moves. Pure: who runs and who waits in, who may start out.

Nobody overtakes on a limit that both need: a move that waits for one limit keeps its place under its others.
That leaves a place empty now and then, and nobody waits for ever (a move that needs two hosts would, behind
moves that need one of them each).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from remuda_core.ids import HostId, OperationId
from remuda_core.names import host_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Moves at the same time; 0: no limit."""

    outgoing_per_host: int = 2
    incoming_per_host: int = 2
    cluster: int = 0
    link: int = 0
    """From one certain host to another certain one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    operation: OperationId
    source: HostId
    target: HostId
    maintenance: bool = False
    """Comes after all that somebody asked for."""
    admitted: int = 0
    """Revision of its admission."""

    @property
    def order(self) -> tuple[bool, int, str]:
        return self.maintenance, self.admitted, self.operation


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Of a move that waits."""

    position: int
    """1 is next, among those that wait for the same limit."""
    limit: str
    """As in remuda.compute.v1.QueueProgress."""
    allowed: int


def places(
    limits: Limits, running: Iterable[Move], waiting: Iterable[Move]
) -> Mapping[OperationId, Place | None]:
    """For every move that waits, in their order; None: it may start."""
    taken: Counter[tuple[str, ...]] = Counter()
    for move in running:
        taken.update(key for key, _, _ in _needs(limits, move))
    queued: Counter[tuple[str, ...]] = Counter()
    found: dict[OperationId, Place | None] = {}
    for move in sorted(waiting, key=lambda one: one.order):
        needs = list(_needs(limits, move))
        full = [(key, name, allowed) for key, name, allowed in needs if taken[key] >= allowed]
        found[move.operation] = max(
            (Place(position=queued[key] + 1, limit=name, allowed=allowed) for key, name, allowed in full),
            key=lambda place: place.position,
            default=None,
        )
        queued.update(key for key, _, _ in full)
        taken.update(key for key, _, _ in needs)
    return found


def _needs(limits: Limits, move: Move) -> Iterator[tuple[tuple[str, ...], str, int]]:
    """Every limit that a move falls under: its key, its name, how many it allows."""
    for key, name, allowed in (
        (("outgoing", move.source), f"outgoing of {host_name(move.source)}", limits.outgoing_per_host),
        (("incoming", move.target), f"incoming of {host_name(move.target)}", limits.incoming_per_host),
        (("link", move.source, move.target), "link", limits.link),
        (("cluster",), "cluster", limits.cluster),
    ):
        if allowed:
            yield key, name, allowed
