"""What the sagas need from the rest of the scheduler, and nothing more of it.

Implemented by hosts/ (Agents), placement/ (Placement), live/ (ProgressHub), remuda_core.etcd.election
(Leadership); tests give their own. What everybody reads is `store.StoreView`.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from remuda.agent.v1.agent_pb2 import (
    RunStepRequest,
    StepOutput,
    SurveyResponse,
    SweepReceipt,
    SweepTarget,
)
from remuda.agent.v1.common_pb2 import LeaderRef
from remuda.agent.v1.migration_pb2 import MigrationEnded, StartMigration
from remuda.compute.v1.migration_pb2 import (
    CommandResult,
    ControlMigrationRequest,
    MigrationMilestone,
    MigrationProgress,
)
from remuda.compute.v1.operation_pb2 import PlacementExplanation, Progress
from remuda.image.v1.chunk_pb2 import SignedGrant
from remuda.scheduler.v1.registry_pb2 import ObservedInstance
from remuda_core.etcd import ops
from remuda_core.etcd.model import TxnResult
from remuda_core.ids import HostId, ImageId, InstanceId, NetworkId, OperationId

OnProgress: TypeAlias = Callable[[Progress], None]


class Steering(Protocol):
    """Commands to one migration while a saga follows it."""

    def commands(self) -> AsyncGenerator[ControlMigrationRequest, None]:
        """Those that have no answer yet, the oldest first, then each as it comes; without an end. Begun anew
        with every stream to the host: one that broke may have lost commands or answers.
        """
        ...

    def answer(self, result: CommandResult) -> None:
        """What the host made of the command with this id."""
        ...


class Controls(Protocol):
    def desk(self, operation_id: OperationId) -> Steering: ...

    def finish(self, operation_id: OperationId) -> None:
        """There is no job any more: commands without an answer are refused."""
        ...


class Agents(Protocol):
    """Orders to the hosts' agents.

    Every method raises RemudaError: HOST_UNREACHABLE whenever no answer came, also from a stream that broke
    (whether the order took effect is unknown; the engine repeats it, which joins a running job); any other
    reason is the agent's own word that it failed.
    """

    async def run_step(
        self, host: HostId, request: RunStepRequest, *, on_progress: OnProgress
    ) -> StepOutput: ...

    async def migrate(
        self,
        host: HostId,
        start: StartMigration,
        *,
        on_progress: Callable[[MigrationProgress], None],
        on_milestone: Callable[[MigrationMilestone], None],
        cancel: asyncio.Event,
        steering: Steering,
    ) -> MigrationEnded:
        """Start or join, until the job has ended. `cancel` is passed on; it may be set before the call.
        So are the commands of `steering`, which is told the answers.
        """
        ...

    async def observe(self, host: HostId, instance: InstanceId) -> ObservedInstance:
        """`power_state` is ABSENT when the host knows no such domain."""
        ...

    async def survey(
        self, host: HostId, leader: LeaderRef, *, instance: InstanceId | None, digests: bool, seconds: float
    ) -> SurveyResponse:
        """All that lies there of Remuda, or of the instance; `seconds` is the rpc's own deadline."""
        ...

    async def sweep(
        self, host: HostId, leader: LeaderRef, targets: Sequence[SweepTarget], *, principal: str
    ) -> Sequence[SweepReceipt]:
        """Removes what is still as it was shown; one receipt per target, in order."""
        ...

    async def offer_chunks(
        self,
        host: HostId,
        leader: LeaderRef,
        *,
        image: ImageId,
        manifest_digest: str,
        digests: Sequence[bytes],
        grant: SignedGrant,
    ) -> int:
        """Sends what its cache has of them to the image store; how many are sound again."""
        ...

    async def fence(self, host: HostId, leader: LeaderRef) -> object:
        """Returns once the agent has stored that this leader is the newest."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRequest:
    """One instance that needs a host. Sizes as in InstanceRecord."""

    vcpus: int
    memory_mib: int
    disk_bytes: int
    networks: Sequence[NetworkId] = ()
    pool: str = ""
    """Pool that must exist there; empty: any local one."""
    host_id: HostId | None = None
    """The only host that is wanted."""
    among: frozenset[HostId] | None = None
    """The only hosts that may be taken, because they were checked; None: any. Unlike one that is wanted by
    name, such a host may have been cordoned meanwhile, and is then refused.
    """
    excluded: Mapping[HostId, str] = field(default_factory=dict)
    """Hosts that must not be taken, and why."""
    source_host_id: HostId | None = None
    """For migrations: where it is now; the target must be able to take it live from there."""
    source_pool: str = ""
    """For migrations: where its disks are. The target has this pool by name, and by uid when it is shared."""
    machine_type: str = ""
    architecture: str = ""
    """That the image asks for; empty: any. For migrations the source's counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    host_id: HostId
    pool: str
    explanation: PlacementExplanation


class NothingFits(Exception):
    """Raised by Placement.choose; becomes RemudaError NO_HOST_FITS with the explanation in the operation."""

    def __init__(self, explanation: PlacementExplanation) -> None:
        rejections = ", ".join(f"{name}: {count}" for name, count in sorted(explanation.rejections.items()))
        super().__init__(f"none of {explanation.considered} hosts fits ({rejections or 'no host is known'})")
        self.explanation = explanation


class Placement(Protocol):
    async def choose(self, request: PlacementRequest) -> Decision:
        """Decides over the StoreView as it is now, reservations in journals included. Raises NothingFits.

        The caller holds the cluster's placement lock until its reservation shows in the StoreView.
        """
        ...


class Leadership(Protocol):
    """This process's term; remuda_core.etcd.election.Leadership is one."""

    epoch: int
    cluster_id: int
    lost: asyncio.Event

    async def txn(
        self,
        *,
        compare: Sequence[ops.Compare] = (),
        success: Sequence[ops.Op] = (),
        failure: Sequence[ops.Op] = (),
        witness: str | None = None,
        timeout: float | None = None,
    ) -> TxnResult: ...


class Grants(Protocol):
    def sign(
        self, *, host_id: HostId, operation_id: OperationId, images: Sequence[ImageId]
    ) -> SignedGrant: ...


class ProgressHub(Protocol):
    def publish(self, operation_id: OperationId, progress: Progress) -> None: ...

    def finish(self, operation_id: OperationId) -> None:
        """The operation is over: its watchers end."""
        ...


class Metrics(Protocol):
    """All durations in seconds, labels from closed sets."""

    def operation_ended(self, action: str, outcome: str, seconds: float, *, reason: str = "") -> None:
        """`outcome`: done, failed, cancelled. `reason`: of the error, empty when there is none."""
        ...

    def step_ended(self, action: str, step: str, outcome: str, seconds: float) -> None:
        """`outcome`: done, failed, undone, owed."""
        ...

    def migration_ended(
        self,
        kind: str,
        outcome: str,
        downtime_seconds: float | None,
        *,
        duration_seconds: float | None = None,
        reason: str = "",
    ) -> None:
        """`kind`: live_shared, live_block. Downtime of the guest and duration of the job None: unknown."""
        ...

    def operations_running(self, count: int) -> None: ...

    def debts(self, count: int) -> None: ...
