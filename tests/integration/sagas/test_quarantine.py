"""Operations that meet a host which was booted: its copies may be started when they are confirmed."""

from dataclasses import replace

from remuda.agent.v1.common_pb2 import StepKey
from remuda.compute.v1.instance_pb2 import Instance, StartInstanceRequest, StopInstanceRequest
from remuda.compute.v1.operation_pb2 import OperationMetadata
from remuda_core.errors import Reason, RemudaError
from remuda_core.rpc.status import from_status
from remuda_core.testing.hosts import FakeHost
from remuda_scheduler.testing.cluster import Cluster

DONE, FAILED = OperationMetadata.STATE_DONE, OperationMetadata.STATE_FAILED
REFUSED = RemudaError(Reason.QUARANTINED, "not confirmed yet")


async def test_a_start_given_right_after_the_boot_waits_for_the_verdict(cluster: Cluster) -> None:
    instance = await cluster.running()
    cluster.timing = replace(cluster.timing, patience=30.0)
    await cluster.lead()
    await cluster.done(await cluster.admit("StopInstance", instance, StopInstanceRequest(force=True)), DONE)
    refusals = 0

    async def booted(_: FakeHost, key: StepKey) -> None:
        nonlocal refusals
        # More often than any step is tried.
        if key.step == "guest_started" and refusals < 6:
            refusals += 1
            raise REFUSED

    cluster.agents.before = booted
    await cluster.done(await cluster.admit("StartInstance", instance, StartInstanceRequest()), DONE)
    assert refusals == 6
    assert cluster.domain_on(cluster.a, instance).power == Instance.POWER_STATE_RUNNING


async def test_a_start_that_is_never_confirmed_fails_and_says_so(cluster: Cluster) -> None:
    instance = await cluster.running()
    await cluster.lead()
    await cluster.done(await cluster.admit("StopInstance", instance, StopInstanceRequest(force=True)), DONE)

    async def booted(_: FakeHost, key: StepKey) -> None:
        if key.step == "guest_started" and key.direction == StepKey.DIRECTION_DO:
            raise REFUSED

    cluster.agents.before = booted
    record = await cluster.done(
        await cluster.admit("StartInstance", instance, StartInstanceRequest()), FAILED
    )
    assert from_status(record.error).reason is Reason.QUARANTINED
    assert (await cluster.status(instance)).state == Instance.STATE_STOPPED
    await cluster.nothing_is_open()


async def test_a_launch_whose_host_is_booted_in_the_middle_has_its_copy_made_once_more(
    cluster: Cluster,
) -> None:
    confirmed, refusals = True, 0

    async def booted(_: FakeHost, key: StepKey) -> None:
        """No verdict comes, for no record names the copy yet; the order to make it confirms it."""
        nonlocal confirmed, refusals
        if key.step == "domain_defined":
            confirmed = False  # the host loses its power right after it
        elif key.step == "disks_prepared":
            confirmed = True
        elif key.step == "guest_started" and not confirmed:
            refusals += 1
            raise REFUSED

    cluster.agents.before = booted
    instance, operation = await cluster.launch()
    await cluster.lead()
    await cluster.done(operation, DONE)
    assert refusals == 1
    assert (await cluster.status(instance)).state == Instance.STATE_RUNNING
