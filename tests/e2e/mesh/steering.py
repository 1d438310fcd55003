"""A client of ControlMigration, as tests use it: everything that it was told is kept.

A real migration may be through before a command reaches it, however busy its guest: PremiseLost then.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import grpc
from google.rpc import code_pb2
from remuda.compute.v1 import migration_pb2 as pb
from remuda.compute.v1 import moving_pb2, operation_pb2
from remuda_core.errors import Reason
from remuda_core.rpc.status import from_status
from remuda_core.testing.premise import PremiseLost
from remuda_lab.errors import CommandFailed
from remuda_lab.mesh import CALL_SECONDS, Guest, Mesh, unpack_metadata
from remuda_lab.waiting import wait_for

Result = pb.CommandResult
Progress = pb.MigrationProgress
PATIENCE = 180.0
T = TypeVar("T")
LEAVING = (Progress.PHASE_SWITCH_OVER, Progress.PHASE_FINISHING)
RESTLESS = """#!/bin/sh
dd if=/dev/urandom of=/tmp/hot bs=64k count=24
while :; do dd if=/tmp/hot of=/tmp/busy bs=64k conv=notrunc; usleep 200000; done
"""
"""User data of a guest that rewrites 1.5 MiB of its memory several times a second: at 2 MiB/s it does not end
its migration, unless its machine has no time for it during most of a second. It writes what was there before:
TCG may lose a write of a guest that is being moved.
"""


def move(mesh: Mesh, guest: Guest, to: str, **fields: Any) -> str:
    """Admits a live migration; the operation's name."""
    request = moving_pb2.LiveMigrateInstanceRequest(
        name=guest.name, target_host=f"hosts/{mesh.host_uuid(to)}", **fields
    )
    return str(mesh.instances.LiveMigrateInstance(request, timeout=CALL_SECONDS).name)


def queued(mesh: Mesh, operation: str) -> operation_pb2.QueueProgress:
    """Its place in the queue now; empty when it does not wait there. The leader's part of what is known of an
    operation comes a moment after etcd's.
    """
    request = operation_pb2.WatchOperationRequest(name=operation)
    watched = mesh.watches.WatchOperation(request, timeout=3)
    try:
        for message in watched:
            place = unpack_metadata(message.operation).progress.queue
            if place.position:
                return place
    except grpc.RpcError:
        pass
    finally:
        watched.cancel()
    return operation_pb2.QueueProgress()


def qemu(mesh: Mesh, host: str, guest: Guest, command: str) -> Any:
    """What the monitor of its QEMU answers. Raises CommandFailed when it runs no more on that host."""
    text = mesh.lab.host(host).virsh("qemu-monitor-command", guest.uid, json.dumps({"execute": command}))
    return json.loads(text)["return"]


def command_line(mesh: Mesh, *arguments: str) -> dict[str, Any]:
    """What `remuda migration` prints of a command that was carried out. Raises CommandFailed."""
    printed: dict[str, Any] = json.loads(mesh.cli().run("migration", *arguments, "-o", "json"))
    return printed


class Steering:
    """One call; made by `steering`."""

    def __init__(self, mesh: Mesh, migration: str) -> None:
        self.progress: list[Progress] = []
        self.results: dict[str, Result] = {}
        self.ended: pb.Migration | None = None
        self.failure: Exception | None = None
        self._outbox: queue.SimpleQueue[pb.ControlMigrationRequest | None] = queue.SimpleQueue()
        self._outbox.put(pb.ControlMigrationRequest(attach=pb.AttachToMigration(name=migration)))
        self._call = mesh.migrations.ControlMigration(iter(self._outbox.get, None), timeout=600)
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        try:
            for event in self._call:
                match event.WhichOneof("event"):
                    case "progress":
                        self.progress.append(event.progress)
                    case "result":
                        self.results[event.result.command_id] = event.result
                    case "ended":
                        self.ended = event.ended
        except Exception as error:
            self.failure = error

    def close(self) -> None:
        self._outbox.put(None)
        self._call.cancel()
        self._reading.join(10)

    def tell(self, command_id: str, **command: Any) -> None:
        self._outbox.put(pb.ControlMigrationRequest(command_id=command_id, **command))

    def answer(self, command_id: str) -> Result:
        return self._wait(f"command {command_id} is answered", lambda: self.results.get(command_id))

    def ask(self, command_id: str, **command: Any) -> Result:
        self.tell(command_id, **command)
        return self.answer(command_id)

    def told(self, command_id: str, **command: Any) -> Result:
        """The result of a command that found memory being copied, and left it so if it is a cap."""
        result = self.ask(command_id, **command)
        refused = result.effect == Result.EFFECT_REFUSED
        if result.phase in LEAVING and (refused or "set_bandwidth" in command):
            self.lost(f"before {command_id} had its effect")
        return result

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """For commands from elsewhere, which fail when the migration is over."""
        try:
            yield
        except CommandFailed as failure:
            try:
                self.until_ended()
            except Exception:
                raise failure from None
            self.lost(f"before {failure}")

    def lost(self, when: str) -> NoReturn:
        """It came to its end by itself."""
        ended = self.until_ended()
        assert ended.state == pb.Migration.STATE_DONE, ended
        raise PremiseLost(f"the migration was over {when}: {self.progress[-1:]}")

    def until(
        self, phase: Progress.Phase.ValueType, *, iteration: int = 0, remaining: int = 1 << 60
    ) -> Progress:
        """The first progress of the phase, in that pass or a later one, with at most so many bytes left."""

        def there(one: Progress) -> bool:
            return (
                one.phase == phase and one.iteration >= iteration and one.memory_remaining_bytes <= remaining
            )

        def seen() -> Progress | None:
            return next((one for one in self.progress if there(one)), None)

        return self._wait(f"{Progress.Phase.Name(phase)}, pass {iteration}", seen)

    def until_ended(self) -> pb.Migration:
        return wait_for("the migration is over", lambda: self.ended, timeout=PATIENCE, status=self._last)

    def rates(self, first: int = 0) -> list[float]:
        """MiB of memory per second over each second since `progress[first]`, by the job's own statistics."""
        found = []
        since = None
        for one in self.progress[first:]:
            if one.phase != Progress.PHASE_MEMORY or not one.memory_processed_bytes:
                continue
            since = since or one
            if one.elapsed_ms - since.elapsed_ms >= 1000:
                sent = one.memory_processed_bytes - since.memory_processed_bytes
                found.append(sent / (1 << 20) / ((one.elapsed_ms - since.elapsed_ms) / 1000))
                since = one
        return found

    def _wait(self, what: str, probe: Callable[[], T | None]) -> T:
        def alive() -> T | None:
            found = probe()
            if not found and self.ended is not None:
                self.lost(f"before {what}")
            return found

        return wait_for(what, alive, timeout=PATIENCE, status=self._last)

    def _last(self) -> str:
        return f"{self.progress[-1:]} {self.results} {self.ended} {self.failure}".replace("\n", " ")[-900:]


@contextmanager
def steering(mesh: Mesh, operation: str) -> Iterator[Steering]:
    """Attached as soon as the operation has a migration."""
    name = wait_for(f"{operation} has a target", lambda: mesh.metadata(operation).migration, timeout=PATIENCE)
    made = Steering(mesh, name)
    try:
        yield made
    finally:
        made.close()


def refused(result: Result, phase: Progress.Phase.ValueType) -> bool:
    """FAILED_PRECONDITION with the phase, in words for machines too."""
    error = from_status(result.error)
    assert (result.effect, result.phase) == (Result.EFFECT_REFUSED, phase), result
    assert (result.error.code, error.reason) == (code_pb2.FAILED_PRECONDITION, Reason.COMMAND_REFUSED), result
    assert error.metadata["phase"] == Progress.Phase.Name(phase).removeprefix("PHASE_"), result
    return True
