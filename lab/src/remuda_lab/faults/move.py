"""A live migration that is watched, so that something can be done to it at a certain point."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from google.longrunning import operations_pb2
from remuda.compute.v1.migration_pb2 import MigrationProgress
from remuda.compute.v1.operation_pb2 import OperationMetadata, OperationStep, WatchOperationRequest
from remuda.store.v1.operation_pb2 import Journal

from remuda_lab.errors import WaitTimeout
from remuda_lab.mesh import Guest, Mesh, unpack_metadata

WATCH_SECONDS = 240.0


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Judgement:
    """One call of `decide_outcome`."""

    time: datetime
    outcome: str
    source: str
    """What the source showed, in words."""
    target: str

    @property
    def said(self) -> tuple[str, str, str]:
        return self.outcome, self.source, self.target


class Move:
    """One WatchOperation stream, opened once and never again."""

    def __init__(self, mesh: Mesh, guest: Guest, operation: str, *, source: str, target: str) -> None:
        self.mesh, self.guest, self.operation = mesh, guest, operation
        self.source, self.target = source, target
        self.messages: list[operations_pb2.Operation] = []
        self.failure: Exception | None = None
        self._changed = threading.Condition()
        self._over = False
        self._call = mesh.watches.WatchOperation(WatchOperationRequest(name=operation), timeout=WATCH_SECONDS)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._call.cancel()
        self._thread.join(10)

    @property
    def over(self) -> bool:
        """The operation has ended, as far as the stream has told."""
        return self._over

    # -- waiting for a point ---------------------------------------------------------------------

    def wait(
        self, what: str, right: Callable[[OperationMetadata], bool], *, timeout: float = 90.0
    ) -> OperationMetadata:
        """Until the newest message is right. Raises WaitTimeout, also when the operation has ended."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                last = unpack_metadata(self.messages[-1]) if self.messages else OperationMetadata()
                if self.messages and right(last):
                    return last
                left = deadline - time.monotonic()
                if self._over or left <= 0:
                    raise WaitTimeout(f"{what}: not so; failure {self.failure}; last: {_line(self.messages)}")
                self._changed.wait(left)

    def wait_step(self, name: str, *, timeout: float = 90.0) -> OperationMetadata:
        """Until the step is the open one."""
        return self.wait(f"step {name} is open", lambda seen: seen.phase == name, timeout=timeout)

    def wait_step_begun(self, name: str, *, timeout: float = 90.0) -> OperationMetadata:
        """Until the step is open, or was: one that is short may be over before anybody looks."""

        def begun(seen: OperationMetadata) -> bool:
            return any(one.name == name for one in seen.steps)

        return self.wait(f"step {name} has begun", begun, timeout=timeout)

    def wait_step_done(self, name: str, *, timeout: float = 90.0) -> OperationMetadata:
        def done(seen: OperationMetadata) -> bool:
            return any(one.name == name and one.state == OperationStep.STATE_DONE for one in seen.steps)

        return self.wait(f"step {name} is done", done, timeout=timeout)

    def wait_memory(self, *, at_most: int = 1 << 62, timeout: float = 90.0) -> MigrationProgress:
        """Until memory is on its way, and at most so many bytes of it are left to send."""

        def copies(seen: OperationMetadata) -> bool:
            progress = seen.progress.migration
            under_way = progress.phase == MigrationProgress.PHASE_MEMORY
            sent = progress.memory_processed_bytes > 1 << 20
            return under_way and sent and progress.memory_remaining_bytes <= at_most

        return self.wait("memory is copied", copies, timeout=timeout).progress.migration

    def wait_state(self, *states: OperationMetadata.State.ValueType, timeout: float = 120.0) -> None:
        self.wait(f"the operation is in {states}", lambda seen: seen.state in states, timeout=timeout)

    def wait_end(self, *, timeout: float = 180.0) -> operations_pb2.Operation:
        """Raises WaitTimeout; AssertionError when the stream broke."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not self._over and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
        if not self._over:
            raise WaitTimeout(f"{self.operation} does not end: {_line(self.messages)}")
        assert self.failure is None, self.failure
        assert self.messages[-1].done
        return self.messages[-1]

    # -- what is written -------------------------------------------------------------------------

    def journal(self) -> Journal:
        """As it stands in etcd, whoever leads. Empty when the operation has ended."""
        key = f"journals/{self.operation.rpartition('/')[2]}"
        return Journal.FromString(self.mesh.etcd(key).get(key, b""))

    def open_step(self) -> str:
        """The step that a new leader would go on with."""
        entries = self.journal().entries
        return entries[-1].step if entries and entries[-1].state == OperationStep.STATE_RUNNING else ""

    def judgements(self, *, since: datetime | None = None) -> list[Judgement]:
        """What `decide_outcome` has said so far, in order, repetitions left out, by the schedulers' logs."""
        mine = self.operation.rpartition("/")[2]
        found = [one for name in ("scheduler-1", "scheduler-2") for one in _judged(self.mesh, name, mine)]
        found = [one for one in sorted(found) if since is None or one.time >= since]
        return [
            one
            for before, one in itertools.pairwise([None, *found])
            if one and (not before or one.said != before.said)
        ]

    def outcomes(self, *, since: datetime | None = None) -> list[str]:
        """Their names."""
        names = [one.outcome for one in self.judgements(since=since)]
        return [one for before, one in itertools.pairwise([None, *names]) if one and one != before]

    def hasten(self) -> None:
        """Lifts the cap: the memory phase ends at once. Libvirt applies it to memory only."""
        self.mesh.lab.host(self.source).virsh("migrate-setspeed", self.guest.uid, "4000")

    def _read(self) -> None:
        try:
            for message in self._call:
                with self._changed:
                    self.messages.append(message.operation)
                    self._over = message.operation.done
                    self._changed.notify_all()
        except Exception as error:
            self.failure = error
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()


def _judged(mesh: Mesh, scheduler: str, operation: str) -> Iterator[Judgement]:
    for line in mesh.cluster.log(scheduler).read_text().splitlines():
        if '"migration judged"' not in line or operation not in line:
            continue
        fields = json.loads(line)
        yield Judgement(
            time=datetime.fromisoformat(fields["timestamp"]),
            outcome=fields["outcome"],
            source=fields["source"],
            target=fields["target"],
        )


def _line(messages: list[operations_pb2.Operation]) -> str:
    return str(unpack_metadata(messages[-1])).replace("\n", " ")[-800:] if messages else "nothing"
