"""One move by one tool, with everything that is seen of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from google.protobuf.timestamp_pb2 import Timestamp
from remuda.compute.v1.operation_pb2 import OperationMetadata
from remuda_lab.errors import LabError
from remuda_lab.guest_view import GuestState, GuestView
from remuda_lab.mesh import Guest, Mesh
from remuda_lab.pinger import Pinger, PingReport

from remuda_bench.migration import virsh
from remuda_bench.migration.figures import Move
from remuda_bench.migration.plan import Round, Tool
from remuda_bench.migration.sightings import GONE, PAUSED, RESUMED, Sightings
from remuda_bench.migration.twin import Twin
from remuda_bench.usage import Usage
from remuda_bench.watching import watched

PING_SECONDS = 0.005
AFTERMATH_SECONDS = 0.5
"""What the services still do for a move after its end counts as its cost."""
DONE_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What only the tool itself knows of its move; seconds of the wall clock."""

    requested: float
    job_started: float
    done: float
    admitted: float | None = None
    steps_ms: Mapping[str, float] = field(default_factory=dict)
    disk_bytes: int | None = None
    """None: the source's libvirt still knows."""


class Mover(Protocol):
    """A tool with its guest."""

    @property
    def tool(self) -> Tool: ...

    @property
    def uid(self) -> str: ...

    @property
    def view(self) -> GuestView: ...

    def prepare(self, turn: Round) -> None:
        """What is not measured."""

    def move(self, turn: Round) -> Told:
        """Raises LabError when the guest did not move."""

    def tidy(self, turn: Round) -> None:
        """What is not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ByRemuda:
    """A request, and a watch of its operation until it says DONE."""

    guest: Guest

    @property
    def tool(self) -> Tool:
        return Tool.REMUDA

    @property
    def uid(self) -> str:
        return self.guest.uid

    @property
    def view(self) -> GuestView:
        return self.guest.view

    def prepare(self, turn: Round) -> None:
        """Nothing: all that a move needs is part of what is measured."""

    def move(self, turn: Round) -> Told:
        mesh = self.guest.mesh
        requested = time.time()
        operation = mesh.live_migrate(self.guest, to=turn.target)
        admitted = time.time()
        ended = watched(mesh, operation.name, timeout=DONE_SECONDS)
        done = time.time()
        record = mesh.migration_of(operation.name)
        started = next((one.time for one in record.timeline if one.type == "JOB_STARTED"), None)
        if started is None or ended.state != OperationMetadata.STATE_DONE:
            raise LabError(f"Remuda did not move {self.guest.name}: {record}")
        return Told(
            requested=requested,
            admitted=admitted,
            job_started=_seconds(started),
            done=done,
            disk_bytes=record.disk_bytes,
            steps_ms={
                step.name: (_seconds(step.end_time) - _seconds(step.start_time)) * 1000
                for step in ended.steps
            },
        )

    def tidy(self, turn: Round) -> None:
        """Nothing: Remuda cleans up behind itself, and that is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ByVirsh:
    """The raw tool. Preparing the target and cleaning the source is left out: it does neither."""

    twin: Twin

    @property
    def tool(self) -> Tool:
        return Tool.VIRSH

    @property
    def uid(self) -> str:
        return self.twin.uid

    @property
    def view(self) -> GuestView:
        return self.twin.view

    def words(self, turn: Round) -> list[str]:
        """The command."""
        address = str(self.twin.mesh.lab.plan(turn.target).address)
        return virsh.migrate_words(
            self.twin.kind, domain=self.uid, target=turn.target, address=address, xml=self._xml
        )

    def prepare(self, turn: Round) -> None:
        source = self.twin.mesh.lab.host(turn.source)
        self.twin.expect_at(turn.target)
        # With new metadata in Remuda's case; here as it is, for libvirt to do the same work.
        text = source.virsh("dumpxml", "--migratable", "--security-info", self.uid)
        (self.twin.files(turn.source) / "target.xml").write_text(text)
        source.virsh("migrate-setmaxdowntime", self.uid, str(virsh.MAX_DOWNTIME_MS))

    def move(self, turn: Round) -> Told:
        source = self.twin.mesh.lab.host(turn.source)
        called = virsh.migrate(source, self.words(turn), domain=self.uid)
        return Told(requested=called.begun, job_started=called.begun, done=called.returned)

    def tidy(self, turn: Round) -> None:
        self.twin.forget_at(turn.source)

    @property
    def _xml(self) -> str:
        return f"{self.twin.inside}/target.xml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bystanders:
    """Who looks on: libvirt's events, the kernel's account of processor time."""

    sightings: Sightings
    usage: Callable[[], Usage]


def measure(mover: Mover, turn: Round, bystanders: Bystanders, mesh: Mesh) -> Move:
    """Raises LabError when the guest did not move, or did not live through it."""
    mover.prepare(turn)
    before = mover.view.wait_up()
    used = bystanders.usage()
    began = time.time()
    with _pinged(mover, mesh) as pings:
        told = mover.move(turn)
    seen = bystanders.sightings
    paused = seen.wait(turn.source, mover.uid, PAUSED, since=began)
    resumed = seen.wait(turn.target, mover.uid, RESUMED, since=began)
    gone = seen.wait(turn.source, mover.uid, GONE, since=began)
    time.sleep(max(0.0, told.done + AFTERMATH_SECONDS - time.time()))
    after = bystanders.usage()
    stats = seen.completed(turn.target, mover.uid)
    disk_bytes = told.disk_bytes
    if disk_bytes is None:
        # Unlike the rest it is not among what the source tells the target.
        disk_bytes = int(seen.completed(turn.source, mover.uid).get("disk_processed", 0))
    _check_alive(mover, before)
    mover.tidy(turn)

    def moment(at: float) -> float:
        return (at - told.requested) * 1000

    return Move(
        run=turn.number,
        tool=mover.tool,
        source=turn.source,
        target=turn.target,
        admitted_ms=None if told.admitted is None else moment(told.admitted),
        job_started_ms=moment(told.job_started),
        source_paused_ms=moment(paused),
        target_resumed_ms=moment(resumed),
        job_ended_ms=moment(gone),
        done_ms=moment(told.done),
        steps_ms=told.steps_ms,
        downtime_ms=stats.get("downtime"),
        elapsed_ms=stats.get("time_elapsed"),
        memory_bytes=int(stats.get("memory_processed", 0)),
        disk_bytes=disk_bytes,
        iterations=int(stats.get("memory_iteration", 0)),
        longest_gap_ms=pings[0].longest_gap_seconds * 1000,
        pings_lost=pings[0].lost,
        cpu_seconds=after.since(used),
        window_seconds=after.at - used.at,
    )


@contextmanager
def _pinged(mover: Mover, mesh: Mesh) -> Iterator[list[PingReport]]:
    """Until the guest answers again after the block; the report is there when the block has been left."""
    reports: list[PingReport] = []
    with Pinger(mesh.lab.fabric().init, mover.view.address, interval=PING_SECONDS) as pinger:
        pinger.wait_answer(timeout=30)
        yield reports
        pinger.wait_answer(timeout=30)
        reports.append(pinger.report())


def _check_alive(mover: Mover, before: GuestState) -> None:
    """Its counter goes on: what moved is what ran before, and it runs."""
    after = mover.view.wait_tick(before.memory_tick)
    if after.boot_nonce != before.boot_nonce:
        raise LabError(f"the guest of {mover.tool} did not move, it booted again")


def _seconds(stamp: Timestamp) -> float:
    return stamp.seconds + stamp.nanos / 1e9
