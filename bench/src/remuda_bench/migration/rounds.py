"""The whole bench on a mesh that is up: guests of both tools, rounds, and what they come to."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from remuda_lab.cluster.cluster import SERVICES
from remuda_lab.cluster.populate import NETWORK
from remuda_lab.errors import LabError
from remuda_lab.mesh import IMAGE, Mesh
from remuda_lab.processes import ProcessRef

from remuda_bench import machine
from remuda_bench.migration.figures import Figures, Idle, Move
from remuda_bench.migration.moving import ByRemuda, Bystanders, ByVirsh, measure
from remuda_bench.migration.plan import HOSTS, Kind, Round, Tool, rounds
from remuda_bench.migration.sightings import Sightings
from remuda_bench.migration.twin import make_twin
from remuda_bench.usage import Usage, cpu_seconds, resident_bytes

REST_SECONDS = 31.0
"""From a round's end to the next one in its direction: a preflight may use answers of the last 30 s again,
and what is to be measured is one that asks.
"""

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the program was asked for. ``rest_seconds``: see REST_SECONDS."""

    runs: int
    kinds: tuple[Kind, ...] = (Kind.BLOCK, Kind.SHARED)
    warm_up: bool = True
    rest_seconds: float = REST_SECONDS


def run_bench(mesh: Mesh, settings: Settings, *, tell: Tell = lambda _: None) -> Figures:
    """Raises LabError, with a sentence, when a guest does not move as it should."""
    began, load = time.monotonic(), os.getloadavg()[0]
    processes = _processes(mesh)
    idle = Resting(usage=lambda: _usage(processes))
    moves: dict[Kind, list[Move]] = {}
    commands: dict[Kind, str] = {}
    uris = {name: mesh.lab.host(name).libvirt_uri for name in HOSTS}
    with Sightings(uris) as sightings:
        bystanders = Bystanders(sightings=sightings, usage=lambda: _usage(processes))
        for kind in settings.kinds:
            with _guests(mesh, kind, tell) as (ours, theirs):
                commands[kind] = shlex.join(["virsh", *theirs.words(next(rounds(1)))])
                moves[kind] = _measure_all(mesh, kind, settings, (ours, theirs), bystanders, idle, tell)
    # Half a second at least, so that a bench of one round has something to divide by.
    idle.rest(0.5)
    return Figures(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine.with_guests(mesh, HOSTS[0]),
        load={"at the start": load, "at the end": os.getloadavg()[0]},
        settings={
            "runs": settings.runs,
            "rest_seconds": settings.rest_seconds,
        },
        took_seconds=time.monotonic() - began,
        commands=commands,
        moves=moves,
        idle=idle.seen,
        resident_bytes={name: resident_bytes(process) for name, process in processes.items()},
    )


@dataclass(slots=True)
class Resting:
    """Waits, and counts what is used meanwhile."""

    usage: Callable[[], Usage]
    seen: Idle = field(default_factory=lambda: Idle(seconds=0.0, cpu_seconds={}))

    def rest(self, seconds: float) -> None:
        before = self.usage()
        time.sleep(max(0.0, seconds))
        after = self.usage()
        known = self.seen.cpu_seconds
        self.seen = Idle(
            seconds=self.seen.seconds + after.at - before.at,
            cpu_seconds={name: known.get(name, 0.0) + used for name, used in after.since(before).items()},
        )


@contextlib.contextmanager
def _guests(mesh: Mesh, kind: Kind, tell: Tell) -> Iterator[tuple[ByRemuda, ByVirsh]]:
    """Two that boot at the same time, on the first host."""
    tell(f"{kind}: launching a guest and its twin on {HOSTS[0]}")
    created = mesh.cli().json(
        *("instance", "create", f"bench-{kind}", "--flavor", "tiny", "--image", IMAGE),
        *("--network", NETWORK, "--host", HOSTS[0], "--pool", kind.pool),
    )
    guest = mesh.guest(created["name"])
    try:
        twin = make_twin(mesh, guest, kind, host=HOSTS[0])
        try:
            guest.view.wait_up()
            twin.view.wait_up()
            yield ByRemuda(guest=guest), ByVirsh(twin=twin)
        finally:
            twin.remove()
    finally:
        guest.delete()


def _measure_all(
    mesh: Mesh,
    kind: Kind,
    settings: Settings,
    movers: tuple[ByRemuda, ByVirsh],
    bystanders: Bystanders,
    idle: Resting,
    tell: Tell,
) -> list[Move]:
    by_tool = {mover.tool: mover for mover in movers}
    ended: dict[str, float] = {}
    moves = []
    for turn in rounds(settings.runs, warm_up=settings.warm_up):
        if turn.source in ended:
            idle.rest(ended[turn.source] + settings.rest_seconds - time.monotonic())
        for tool in turn.order:
            move = measure(by_tool[tool], turn, bystanders, mesh)
            tell(_line(kind, turn, move))
            moves.append(move)
        ended[turn.source] = time.monotonic()
    return moves


def _line(kind: Kind, turn: Round, move: Move) -> str:
    number = "warm-up" if turn.warm_up else f"run {turn.number}"
    words = f"{kind}, {number}, {move.source} -> {move.target}, {move.tool:6}: job {move.job_ms:5.0f} ms"
    if move.tool is Tool.REMUDA:
        words += f", before it {move.before_ms:3.0f} ms, after it {move.after_ms:3.0f} ms"
    downtime = "unknown" if move.downtime_ms is None else f"{move.downtime_ms} ms"
    return f"{words}, downtime {downtime}, gap {move.longest_gap_ms:.0f} ms"


def _processes(mesh: Mesh) -> dict[str, ProcessRef]:
    found = {name: mesh.cluster.pid(name) for name in (*SERVICES, "etcd")}
    for name in mesh.lab.running_hosts():
        found[f"agent {name}"] = mesh.cluster.pid(name)
        pid = mesh.lab.host(name).units.status()["libvirtd"].pid
        if pid is None:
            raise LabError(f"libvirtd of {name} does not run")
        found[f"libvirtd {name}"] = ProcessRef.of(pid)
    return found


def _usage(processes: Mapping[str, ProcessRef]) -> Usage:
    seconds = {name: cpu_seconds(process) for name, process in processes.items()}
    return Usage(at=time.monotonic(), seconds=seconds)
