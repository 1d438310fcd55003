"""Two copies of a guest run, and the record has decided which one is the instance's.

The other is paused, so that no more is written by both, and shown. It is never destroyed: its disk may hold
what the right one's does not. An operator looks, and destroys it on its host or deletes the instance.
"""

import structlog
from remuda.agent.v1.agent_pb2 import PauseDomain, RunStepRequest
from remuda.compute.v1.event_pb2 import InstanceEvent
from remuda.compute.v1.instance_pb2 import Instance
from remuda.scheduler.v1.registry_pb2 import ObservedInstance
from remuda.store.v1.host_pb2 import Debt
from remuda.store.v1.instance_pb2 import InstanceStatus
from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd import ops
from remuda_core.ids import HostId, InstanceId, OperationId
from remuda_core.names import host_name, operation_name

from remuda_scheduler.engine.services import Services
from remuda_scheduler.events import append_event

_log = structlog.get_logger(__name__)

_TRIES = 8
_BY_HAND = "user"
"""libvirt's reason for a pause that somebody asked for: us, the owner, an operator."""


async def contain_second_copy(services: Services, debt: Debt, order: RunStepRequest) -> None:
    """Pauses a copy that is to be given up and runs.

    Raises RemudaError when there is one: what is owed stays owed. One that is paused already is left alone
    too, whoever paused it: agents take a paused copy without a job for a left-over, and would destroy it.
    """
    host, instance = HostId(debt.host_id), InstanceId(debt.instance_id)
    seen = await services.agents.observe(host, instance)
    runs = seen.power_state == Instance.POWER_STATE_RUNNING
    by_hand = seen.power_state == Instance.POWER_STATE_PAUSED and seen.reason == _BY_HAND
    status = await services.etcd.get(services.keys.instance_status(instance))
    if seen.epoch != debt.epoch or not (runs or by_hand) or status is None:
        return
    elsewhere = InstanceStatus.FromString(status.value).host_id != host
    # Until the operation has ended both copies may be right.
    claim = services.store.claim(instance)
    ended = claim is None or claim.operation_id != debt.operation_id
    if runs and seen.job == ObservedInstance.JOB_UNSPECIFIED and elsewhere and ended:
        await _pause(services, host, order)
        await _tell(services, debt)
    raise RemudaError(
        Reason.MIGRATION_FAILED,
        "a copy of the guest is alive here that is not the one on record: an operator has to decide",
        metadata={"host": host_name(host)},
    )


async def _pause(services: Services, host: HostId, order: RunStepRequest) -> None:
    request = RunStepRequest(key=order.key, pause_domain=PauseDomain())
    # Beside the order that is owed: agents tell jobs apart by operation, step and direction.
    request.key.step = "second_copy_paused"
    request.key.direction = request.key.DIRECTION_DO
    request.key.leader.CopyFrom(services.leader)
    await services.agents.run_step(host, request, on_progress=lambda _: None)


async def _tell(services: Services, debt: Debt) -> None:
    instance, keys = InstanceId(debt.instance_id), services.keys
    _log.error("two copies of a guest ran", instance=instance, paused_on=debt.host_id)
    event = InstanceEvent(
        type="MIGRATION_SPLIT",
        severity=InstanceEvent.SEVERITY_ERROR,
        message="A second copy ran and was paused; nothing is destroyed, an operator has to decide.",
        operation=operation_name(OperationId(debt.operation_id)),
        host=host_name(HostId(debt.host_id)),
        principal="system/scheduler",
    )
    key = keys.instance_status(instance)
    for _ in range(_TRIES):
        seen = await services.etcd.get(key)
        if seen is None:
            return
        status = InstanceStatus.FromString(seen.value)
        result = await services.leadership.txn(
            compare=[ops.mod_is(key, seen.mod_revision)],
            success=append_event(keys, instance, status, event),
        )
        if result.succeeded:
            return
    _log.error("the event about it was not stored: the status kept changing", instance=instance)
