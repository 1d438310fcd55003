"""What a leader makes of guests that change by themselves, and when it does not believe what it hears."""

import uuid

from google.protobuf.any_pb2 import Any
from remuda.agent.v1.agent_pb2 import RemoveInstance, RunStepRequest
from remuda.agent.v1.common_pb2 import StepKey
from remuda.compute.v1.instance_pb2 import Instance
from remuda.scheduler.v1.registry_pb2 import ObservedInstance
from remuda.store.v1.host_pb2 import Debt
from remuda_core.ids import InstanceId, OperationId
from remuda_core.testing.waiting import wait_for

from tests.integration.hosts.conftest import PROJECT, WAIT_SECONDS, FakeAgent, Hosts

RUNNING, PAUSED = Instance.STATE_RUNNING, Instance.STATE_PAUSED
STOPPED, FAILED = Instance.STATE_STOPPED, Instance.STATE_FAILED
OFF = Instance.POWER_STATE_SHUTOFF


async def running_guest(hosts: Hosts, agent: FakeAgent, *, held_by: str = "") -> InstanceId:
    """RUNNING, and observed so."""
    instance = await hosts.guest(agent, RUNNING, held_by=held_by)
    await hosts.until_observed(instance, Instance.POWER_STATE_RUNNING)
    return instance


async def test_a_guest_that_shuts_itself_down_is_stopped_and_the_timeline_says_so(hosts: Hosts) -> None:
    await hosts.scheduler()
    agent = await hosts.agent("alpha")
    instance = await running_guest(hosts, agent)
    hosts.fabric.power_button_inside("alpha", instance)
    status = await hosts.until_observed(instance, OFF)
    assert (status.state, status.status_message) == (STOPPED, "")
    assert await hosts.events(instance) == ["GUEST_SHUT_DOWN"]


async def test_a_guest_whose_qemu_dies_has_failed_and_says_why(hosts: Hosts) -> None:
    await hosts.scheduler()
    agent = await hosts.agent("alpha")
    instance = await running_guest(hosts, agent)
    hosts.fabric.kill_qemu("alpha", instance)
    status = await hosts.until_observed(instance, Instance.POWER_STATE_CRASHED)
    assert (status.state, status.status_message) == (FAILED, "QEMU ended unexpectedly.")
    assert await hosts.events(instance) == ["GUEST_CRASHED"]


async def test_a_guest_that_somebody_paused_behind_our_back_is_shown_paused(hosts: Hosts) -> None:
    await hosts.scheduler()
    agent = await hosts.agent("alpha")
    instance = await running_guest(hosts, agent)
    await agent.hypervisor.pause(instance)
    status = await hosts.until_observed(instance, Instance.POWER_STATE_PAUSED)
    assert status.state == PAUSED
    await agent.hypervisor.resume(instance)
    status = await hosts.until_observed(instance, Instance.POWER_STATE_RUNNING)
    assert status.state == RUNNING
    assert await hosts.events(instance) == ["GUEST_FOUND_PAUSED", "GUEST_FOUND_RUNNING"]


async def test_a_domain_that_vanished_is_missed(hosts: Hosts) -> None:
    await hosts.scheduler()
    agent = await hosts.agent("alpha")
    instance = await running_guest(hosts, agent)
    await agent.hypervisor.destroy(instance)
    await agent.hypervisor.undefine(instance)
    status = await hosts.until_observed(instance, Instance.POWER_STATE_ABSENT)
    assert status.state == FAILED
    assert (await hosts.events(instance))[-1] == "DOMAIN_VANISHED"


async def test_what_happened_while_the_agent_was_away_is_noticed_when_it_attaches(hosts: Hosts) -> None:
    await hosts.scheduler()
    agent = await hosts.agent("alpha")
    instance = await running_guest(hosts, agent)
    await agent.end()
    hosts.fabric.kill_qemu("alpha", instance)
    agent.start()
    assert (await hosts.until_observed(instance, Instance.POWER_STATE_CRASHED)).state == FAILED


async def test_while_an_operation_holds_the_instance_it_is_only_noted_and_counts_afterwards(
    hosts: Hosts,
) -> None:
    scheduler = await hosts.scheduler()
    agent = await hosts.agent("alpha")
    instance = await running_guest(hosts, agent, held_by="an operation")
    await wait_for(lambda: scheduler.leader.term().store.claim(instance) is not None, timeout=WAIT_SECONDS)
    hosts.fabric.kill_qemu("alpha", instance)
    status = await hosts.until_observed(instance, Instance.POWER_STATE_CRASHED)
    assert status.state == RUNNING
    assert await hosts.events(instance) == []
    # The operation ends and knows nothing of it: nobody will report the same thing twice.
    await hosts.etcd.delete(hosts.keys.claim(instance))

    async def failed() -> bool:
        return (await hosts.instance_status(instance)).state == FAILED

    await wait_for(failed, timeout=WAIT_SECONDS)
    assert await hosts.events(instance) == ["GUEST_CRASHED"]


async def test_an_observation_that_is_older_than_what_the_host_shows_now_changes_nothing(
    hosts: Hosts,
) -> None:
    """A launch ends while the list made before it is still on its way: the guest is not in that list."""
    scheduler = await hosts.scheduler()
    agent = await hosts.agent("alpha")
    instance = await running_guest(hosts, agent)
    keeper = (await scheduler.term()).keeper
    await keeper.observed(agent.host, [], complete=True)
    off = ObservedInstance(instance_id=instance, epoch=1, power_state=OFF, reason="shutdown")
    await keeper.observed(agent.host, [off], complete=False)
    status = await hosts.instance_status(instance)
    assert (status.state, status.observed.power_state) == (RUNNING, Instance.POWER_STATE_RUNNING)
    assert await hosts.events(instance) == []


async def test_an_observation_that_nobody_can_confirm_changes_nothing(hosts: Hosts) -> None:
    scheduler = await hosts.scheduler()
    agent = await hosts.agent("alpha")
    instance = await running_guest(hosts, agent)
    await agent.end()
    off = ObservedInstance(instance_id=instance, epoch=1, power_state=OFF, reason="shutdown")
    await (await scheduler.term()).keeper.observed(agent.host, [off], complete=False)
    assert (await hosts.instance_status(instance)).state == RUNNING


async def test_the_console_is_read_from_the_host_that_has_the_guest(hosts: Hosts) -> None:
    scheduler = await hosts.scheduler()
    agent = await hosts.agent("alpha")
    instance = await running_guest(hosts, agent)
    (agent.settings.console_dir / f"{instance}.console").write_bytes(b"0123456789")
    output, truncated = await (await scheduler.term()).agents.read_console(agent.host, instance, 4)
    assert (output, truncated) == (b"6789", True)


async def test_a_host_pays_its_debts_when_it_attaches(hosts: Hosts) -> None:
    """A delete that could not reach the host left it a domain; nothing else owns it any more."""
    await hosts.scheduler()
    agent = await hosts.agent("alpha", start=False)
    operation = OperationId(str(uuid.uuid4()))
    instance = await hosts.guest(agent, RUNNING)
    await hosts.etcd.delete(hosts.keys.instance_status(instance))
    await hosts.etcd.delete(hosts.keys.instance(PROJECT, instance))
    order = RunStepRequest(
        key=StepKey(
            operation_id=operation,
            step="instance_removed",
            direction=StepKey.DIRECTION_DO,
            instance_id=instance,
            epoch=1,
        ),
        remove_instance=RemoveInstance(pool="local"),
    )
    packed = Any()
    packed.Pack(order)
    debt = Debt(
        host_id=agent.host,
        operation_id=operation,
        step="instance_removed",
        instance_id=instance,
        request=packed,
    )
    key = hosts.keys.debt(agent.host, operation, "instance_removed")
    await hosts.etcd.put(key, debt.SerializeToString())
    agent.start()

    async def paid() -> bool:
        return await hosts.etcd.get(key) is None

    await wait_for(paid, timeout=WAIT_SECONDS)
    assert await agent.hypervisor.domains() == []
