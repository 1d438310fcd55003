"""One disturbed migration from its begin to the judgement, and the row of the fault table that it gives."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NoReturn

from google.longrunning import operations_pb2
from remuda.compute.v1.instance_pb2 import Instance
from remuda.compute.v1.operation_pb2 import OperationMetadata
from remuda_core.rpc.status import from_status
from remuda_core.testing.premise import PremiseLost

from remuda_lab.errors import LabError
from remuda_lab.faults.copies import CopyWatch
from remuda_lab.faults.leftovers import footprints, leftovers
from remuda_lab.faults.move import Move
from remuda_lab.faults.outcome_rows import rows_shown
from remuda_lab.faults.table import Row
from remuda_lab.guest_view import GuestState
from remuda_lab.mesh import Guest, Mesh, unpack_metadata
from remuda_lab.pinger import Pinger
from remuda_lab.waiting import wait_for

SLOW_MIB_S = 1
"""The guest's memory takes most of a minute: longer than anything that is done to its hosts meanwhile."""


@dataclass(slots=True, kw_only=True)
class Scene:
    """A guest, the host that it is on and the host where it shall go."""

    mesh: Mesh
    guest: Guest
    source: str
    target: str
    fault: str
    point: str
    test: str
    row: Row | None = None
    _before: GuestState
    _footprints: dict[str, frozenset[str]]
    _pinger: Pinger
    _copies: CopyWatch
    _moves: list[Move] = field(default_factory=list)
    _counted: float | None = None
    _since: datetime | None = None

    # -- doing -----------------------------------------------------------------------------------

    def begin(self, *, bandwidth: int = SLOW_MIB_S) -> Move:
        """Admits the migration; it is watched from then on."""
        operation = self.mesh.live_migrate(self.guest, to=self.target, bandwidth=bandwidth)
        move = Move(self.mesh, self.guest, operation.name, source=self.source, target=self.target)
        self._moves.append(move)
        return move

    def follow(self, operation: str) -> Move:
        """A migration that somebody else has admitted."""
        move = Move(self.mesh, self.guest, operation, source=self.source, target=self.target)
        self._moves.append(move)
        return move

    def struck(self) -> None:
        """The fault comes now: what is judged from here on belongs to the row."""
        self._counted = time.monotonic()
        self._since = self._since or datetime.now(UTC)

    def repaired(self) -> None:
        """Before this the operation could only wait: the seconds of the row count from here."""
        self._counted = time.monotonic()

    def too_late(self, move: Move, what: str) -> NoReturn:
        """The fault came when the guest had moved already: when that is over, the guest can move on.

        Raises PremiseLost; LabError when it did not end well.
        """
        ended = move.wait_end()
        if ended.HasField("error"):
            raise LabError(f"{what}, but: {ended.error.message}")
        self.wait_clean(self.target)
        self.source, self.target = self.target, self.source
        self._counted = self._since = None
        raise PremiseLost(what)

    # -- judging ---------------------------------------------------------------------------------

    def ended(
        self,
        move: Move,
        *,
        result: str,
        outcome: str,
        at: str,
        memory_kept: bool = True,
        state: Instance.State.ValueType = Instance.STATE_RUNNING,
        most_copies: int = 1,
    ) -> operations_pb2.Operation:
        """Waits for the end and proves it. ``result``: DONE, or the reason why it failed; ``outcome``: the
        last word of `decide_outcome`; ``at``: source or target. Raises LabError, WaitTimeout.
        """
        ended = move.wait_end()
        took = time.monotonic() - (self._counted or time.monotonic())
        shown = _result(ended)
        outcomes = move.outcomes()
        if shown != result or outcomes[-1:] != [outcome]:
            judged = move.judgements()
            raise LabError(f"{shown} by {judged}, not {result} by {outcome}: {ended.error.message}")
        host = self.source if at == "source" else self.target
        runs = state == Instance.STATE_RUNNING
        self.guest.wait_record(lambda record: record.state == state and not record.operation, timeout=120)
        if self.guest.host() != host:
            raise LabError(f"the record names {self.guest.host()}, not {host}")
        memory = self._prove_data(kept=memory_kept) if runs else "off"
        self.wait_clean(host)
        self._prove_one_copy(host, runs=runs)
        if self._copies.at_once > most_copies:
            raise LabError(f"{self._copies.at_once} copies ran at once: {self._copies.windows}")
        words = _state(ended)
        self.row = Row(
            test=self.test,
            fault=self.fault,
            point=self.point,
            result=words if result == "DONE" else f"{words} {result}",
            # None since then: it was decided before the fault.
            outcomes=tuple(move.outcomes(since=self._since) or outcomes[-1:]),
            guest=f"{at}, {'running' if runs else 'off'}" + ("" if memory_kept else ", started anew"),
            seconds=round(took, 1),
            silence=round(self._pinger.report().longest_gap_seconds, 1),
            memory=memory,
            copies=self._copies.at_once,
            left="nothing",
            rows=rows_shown(move.judgements()),
        )
        return ended

    def wait_clean(self, host: str) -> None:
        """Until nothing is left but the guest on ``host``. Raises WaitTimeout with what is."""

        def left() -> list[str]:
            return leftovers(self.mesh, self.guest, host, self._footprints)

        wait_for(
            "nothing is left", lambda: not left(), timeout=120, interval=0.3, status=lambda: "; ".join(left())
        )

    def _prove_data(self, *, kept: bool) -> str:
        old, view = self._before, self.guest.view
        if kept:
            now = view.wait_tick(old.memory_tick)
            if (now.boot_nonce, now.boots) != (old.boot_nonce, old.boots):
                raise LabError(f"the guest booted again: {old} became {now}")
        else:
            now = view.wait_up()
            if now.boots <= old.boots:
                raise LabError(f"the guest should have booted again: {old} became {now}")
        disk = view.disk()
        if min(now.disk_tick, disk.disk_tick) < old.disk_tick or not disk.whole:
            raise LabError(f"data on the disk went back: {old} became {now}, {disk}")
        return f"{old.memory_tick} → {now.memory_tick}"

    def _prove_one_copy(self, host: str, *, runs: bool) -> None:
        seen = {name: self.mesh.domains(name).get(self.guest.uid) for name in self.mesh.lab.running_hosts()}
        wanted = "running" if runs else "shut off"
        if seen != {name: wanted if name == host else None for name in seen}:
            raise LabError(f"it should be {wanted} on {host} only: {seen}")
        pids = {name: self.mesh.lab.host(name).qemu_pids(self.guest.uid) for name in seen}
        if [len(pids[name]) for name in seen] != [int(runs and name == host) for name in seen]:
            raise LabError(f"QEMUs of the guest: {pids}")

    def close(self) -> None:
        for move in self._moves:
            move.close()


@contextmanager
def scene(
    mesh: Mesh, guest: Guest, *, source: str, target: str, fault: str, point: str, test: str
) -> Iterator[Scene]:
    """Watches the guest for the length of the block."""
    with (
        Pinger(mesh.lab.fabric().init, guest.address, interval=0.05) as pinger,
        CopyWatch(mesh.lab, guest.uid) as copies,
    ):
        pinger.wait_answer(timeout=60)
        made = Scene(
            mesh=mesh,
            guest=guest,
            source=source,
            target=target,
            fault=fault,
            point=point,
            test=test,
            _before=guest.view.state(),
            _footprints=footprints(mesh.lab),
            _pinger=pinger,
            _copies=copies,
        )
        try:
            yield made
        finally:
            made.close()


def _state(ended: operations_pb2.Operation) -> str:
    return OperationMetadata.State.Name(unpack_metadata(ended).state).removeprefix("STATE_")


def _result(ended: operations_pb2.Operation) -> str:
    return from_status(ended.error).reason.value if ended.HasField("error") else _state(ended)
