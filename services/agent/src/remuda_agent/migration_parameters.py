"""What of a running migration has to survive the agent: files named after the instance.

<directory>/<instance>.migration   the StartMigration; its modification time is when the job began
<directory>/<instance>.paused      the guest was paused so that the migration can end
<directory>/<instance>.steering    commands and rungs so far (migration_ledger.py)
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog
from google.protobuf.message import DecodeError
from remuda.agent.v1.migration_pb2 import MigrationPolicy, StartMigration
from remuda_core.errors import Reason, RemudaError

_log = structlog.get_logger(__name__)

DEFAULT_TIMEOUT_SECONDS = 3600.0


def timeout_seconds(policy: MigrationPolicy) -> float:
    """From the start of the job to the switch-over."""
    asked = policy.timeout.ToTimedelta().total_seconds() if policy.HasField("timeout") else 0.0
    return asked or DEFAULT_TIMEOUT_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Of one migration. Blocking calls, each a few system calls long."""

    path: Path
    began: datetime
    """This host's clock; the same over restarts of the agent."""

    @classmethod
    def keep(cls, directory: Path, start: StartMigration) -> "Parameters":
        """For a job that begins: stored when it returns, with a new start time."""
        directory.mkdir(parents=True, exist_ok=True)
        path = _path(directory, start)
        _paused(path).unlink(missing_ok=True)
        _ledger(path).unlink(missing_ok=True)
        draft = path.with_suffix(".new")
        with draft.open("wb") as file:
            file.write(start.SerializeToString())
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
        return cls._of(path)

    @classmethod
    def of_running(cls, directory: Path, start: StartMigration) -> "Parameters":
        """For a job that runs already: what was stored when it began stays, start time and pause included.

        Raises STEP_FAILED when that was another migration, which is not ours to follow.
        """
        known = _read(_path(directory, start))
        if known is None:
            return cls.keep(directory, start)
        if not same_migration(known, start):
            raise RemudaError(
                Reason.STEP_FAILED,
                f"operation {known.key.operation_id} still migrates the guest to {known.target.hostname}",
            )
        return cls._of(_path(directory, start))

    @classmethod
    def left_by(cls, directory: Path, start: StartMigration) -> "Parameters | None":
        """What an earlier try of the same migration has left; None: nothing."""
        known = _read(_path(directory, start))
        return cls._of(_path(directory, start)) if known and same_migration(known, start) else None

    @classmethod
    def _of(cls, path: Path) -> "Parameters":
        return cls(path=path, began=datetime.fromtimestamp(path.stat().st_mtime, UTC))

    @staticmethod
    def left_in(directory: Path) -> Iterator[StartMigration]:
        """Every migration that may have been running when the agent ended."""
        for path in sorted(directory.glob("*.migration")):
            start = _read(path)
            if start is not None:
                yield start

    @property
    def ledger(self) -> Path:
        """See migration_ledger.py."""
        return _ledger(self.path)

    @property
    def paused_by_us(self) -> bool:
        return _paused(self.path).exists()

    def note_pause(self) -> None:
        """Before the guest is paused: whoever comes after a crash must not leave it so."""
        _paused(self.path).touch()

    def forget(self) -> None:
        """The migration is over."""
        _paused(self.path).unlink(missing_ok=True)
        self.ledger.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


def same_migration(one: StartMigration, other: StartMigration) -> bool:
    """An operation that tries several targets orders several migrations, all by the same step."""
    return _identity(one) == _identity(other)


def _identity(start: StartMigration) -> tuple[object, ...]:
    key, target = start.key, start.target
    return (
        *(key.operation_id, key.step, key.instance_id, key.epoch),
        *(target.host_id, target.hostname, start.target_epoch),
    )


def _path(directory: Path, start: StartMigration) -> Path:
    return directory / f"{start.key.instance_id}.migration"


def _paused(path: Path) -> Path:
    return path.with_suffix(".paused")


def _ledger(path: Path) -> Path:
    return path.with_suffix(".steering")


def _read(path: Path) -> StartMigration | None:
    try:
        return StartMigration.FromString(path.read_bytes())
    except FileNotFoundError:
        return None
    except DecodeError:
        # It is written by rename, so this is damage from outside. The leader asks again for what runs.
        _log.error("a migration's parameters cannot be read", path=str(path))
        return None
