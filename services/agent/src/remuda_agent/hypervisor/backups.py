"""The part of `Hypervisor` that snapshots use: a running guest's disk as of one moment."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from remuda_core.ids import InstanceId

DISK = "vda"
"""The system disk's target, and the name of its export."""
BITMAP = "changed"
"""What the export calls the extents that have changed since ``BackupRequest.since``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupRequest:
    """The system disk, served over NBD on a unix socket until the backup is ended."""

    instance_id: InstanceId
    socket: Path
    """Made by QEMU, in a directory that its user may write to."""
    scratch: Path
    """What the guest overwrites is kept there; made by the hypervisor, where nothing is yet."""
    since: str = ""
    """A checkpoint: the export also tells what has changed since; empty: it does not."""
    checkpoint: str = ""
    """Made at the same moment, under this name; empty: none."""


class Guard(Protocol):
    """Undoes what it did when its block is left, and when this process dies."""

    async def freeze(self) -> None:
        """Freeze the guest's file systems through its agent. Raises QUIESCE_FAILED, within a few seconds when
        nobody answers; what is frozen all the same is thawed.
        """

    async def thaw(self) -> bool:
        """Whether they were frozen until now. False: they were thawed before, by whomever."""

    async def settle(self) -> None:
        """Stop the CPUs for an instant, unless they stand still: stopping makes QEMU write its tables to the
        file, where everything that is allocated can be seen from outside then.
        """


class Backups(Protocol):
    """Errors as in `Hypervisor`."""

    def guarded(self, instance_id: InstanceId, *, limit: float) -> AbstractAsyncContextManager[Guard]:
        """``limit``: seconds from `Guard.freeze` until it thaws by itself. Raises HYPERVISOR_ERROR."""

    async def thaw(self, instance_id: InstanceId) -> None:
        """For a guest whose guard was killed together with its agent; nothing frozen is a success. Raises
        DomainMissing; HYPERVISOR_ERROR when the guest's agent does not answer.
        """

    async def begin_backup(self, request: BackupRequest) -> None:
        """Returns at the moment of the content. The job goes on without this process. Raises DomainMissing;
        HYPERVISOR_ERROR also when there is a job already, and when ``since`` cannot be used.
        """

    async def end_backup(self, instance_id: InstanceId) -> None:
        """Over when it returns; no backup is a success, any other job stays. Raises DomainMissing."""

    async def checkpoints(self, instance_id: InstanceId) -> list[str]:
        """Names of all, the oldest first, also of a guest that is off. Raises DomainMissing."""

    async def delete_checkpoint(self, instance_id: InstanceId, name: str) -> None:
        """What it knows goes over to the one before it; none of that name is a success. Of a guest that is
        off only the name is forgotten. Raises DomainMissing.
        """
