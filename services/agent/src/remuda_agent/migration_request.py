"""An order to migrate, as the hypervisor is told. Pure."""

from remuda.agent.v1.migration_pb2 import StartMigration
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import Epoch, InstanceId, OperationId
from remuda_core.migration.ladder import Pace

from remuda_agent.hypervisor import MigrationRequest
from remuda_agent.migration_progress import QEMU_DOWNTIME_MS


def request_of(start: StartMigration, pace: Pace) -> MigrationRequest:
    """Begins with a short pause, which the ladder raises. Raises STEP_FAILED as `_bridges` does."""
    return MigrationRequest(
        instance_id=InstanceId(start.key.instance_id),
        operation_id=OperationId(start.key.operation_id),
        target_epoch=Epoch(start.target_epoch),
        target_hostname=start.target.hostname,
        target_address=start.target.address,
        transport=start.target.transport,
        shared_disks=start.shared_disks,
        max_downtime_ms=pace.first_downtime(start.policy.max_downtime_ms or QEMU_DOWNTIME_MS),
        bandwidth_mib_s=start.policy.bandwidth_mib_s,
        auto_converge=start.policy.auto_converge,
        allow_post_copy=start.policy.allow_post_copy,
        bridges=_bridges(start),
    )


def _bridges(start: StartMigration) -> dict[str, str]:
    """By MAC address. Raises STEP_FAILED for a port that the target has not said where to plug in."""
    known = start.target.bridges
    if not known:
        return {}
    lacking = sorted({nic.physical_network for nic in start.spec.nics} - set(known))
    if lacking:
        raise RemudaError(
            Reason.STEP_FAILED, f"{start.target.hostname} has named no bridge for {', '.join(lacking)}"
        )
    return {nic.mac_address.lower(): known[nic.physical_network] for nic in start.spec.nics}
