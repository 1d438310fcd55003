"""What steps need of the disks of this host."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from remuda.agent.v1.common_pb2 import DomainSpec
from remuda.compute.v1.operation_pb2 import Progress
from remuda.image.v1.chunk_pb2 import SignedGrant
from remuda_core.ids import Epoch, HostId, InstanceId, OperationId


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """owner.json: who may touch an instance's directory. Written before any other file in it."""

    instance_id: InstanceId
    host_id: HostId
    epoch: Epoch
    operation_id: OperationId
    role: Literal["owner", "incoming"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InstancePaths:
    """Files of one instance on one pool."""

    directory: Path
    disk: Path
    config_drive: Path


class InstanceFiles(Protocol):
    """Directories of instances on the pools of this host."""

    def paths(self, pool: str, instance_id: InstanceId) -> InstancePaths: ...

    async def create(self, spec: DomainSpec, owner: Owner) -> InstancePaths:
        """Directory, owner.json, overlay, config drive; what exists already and is ours is kept.

        Raises: STALE_EPOCH when a newer owner stands there, DISK_FULL.
        """
        ...

    async def take_over(self, pool: str, owner: Owner) -> None:
        """Rewrites owner.json, for a directory that another host has made or used."""
        ...

    async def owner(self, pool: str, instance_id: InstanceId) -> Owner | None:
        """Whose directory it is; None: there is none, or nothing was begun in it. Raises: STEP_FAILED."""
        ...

    async def remove(self, pool: str, owner: Owner) -> None:
        """Removes the directory, unless another host or a newer epoch owns it (then nothing is done)."""
        ...

    async def delete(self, pool: str, owner: Owner) -> None:
        """Removes the directory for good, that of an older placement too, whichever host it names: on a
        shared pool the record may be late. Raises when it stays: STALE_EPOCH when a newer owner stands
        there, else STEP_FAILED.
        """
        ...


class Networks(Protocol):
    """Physical networks as this host is plugged into them."""

    def bridges(self, physical_networks: Iterable[str]) -> dict[str, str]:
        """The bridge of each. Raises STEP_FAILED for the first that has none here now."""
        ...


class BaseImages(Protocol):
    """The host's cache of base images."""

    async def ensure(
        self,
        *,
        pool: str,
        image_id: str,
        manifest_digest: str,
        grant: SignedGrant,
        operation: OperationId,
        on_progress: Callable[[Progress], None],
    ) -> Path:
        """Fetches what is lacking; one download however many ask. Raises: GRANT_REFUSED, DIGEST_MISMATCH,
        DISK_FULL.

        The base is kept for the operation until `laid`, for an hour at most; an agent that is restarted
        forgets it.
        """
        ...

    def laid(self, operation: OperationId) -> None:
        """The operation's disk lies on its base, or never will."""
        ...
