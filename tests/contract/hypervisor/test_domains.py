"""Definition and power: what every driver does, and how it refuses."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from remuda_agent.hypervisor import (
    DomainJob,
    DomainMissing,
    EventKind,
    Hypervisor,
    MigrationRequest,
    PowerState,
)
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import Epoch, InstanceId, OperationId
from remuda_core.testing.waiting import wait_for

if TYPE_CHECKING:
    from tests.contract.hypervisor.conftest import Hosts

NOBODY = InstanceId(str(uuid.uuid4()))
OTHER_OPERATION = OperationId(str(uuid.uuid4()))


async def test_capabilities_name_a_canonical_default_among_the_machine_types(hosts: Hosts) -> None:
    offered = await hosts.a.capabilities()
    assert offered.driver == hosts.driver
    assert offered.vcpus > 0
    assert offered.memory_mib > 0
    assert offered.domain_type == "qemu"
    assert offered.cpu_model == "qemu64"
    assert offered.libvirt_version >= 9_000_000
    assert offered.qemu_version >= 7_000_000
    assert offered.default_machine_type in offered.machine_types
    assert offered.default_machine_type.startswith("pc-q35-")


async def test_a_defined_guest_is_off_and_persistent_and_carries_its_epoch(hosts: Hosts) -> None:
    guest = hosts.described()
    view = await hosts.a.define(guest)
    assert view == await hosts.a.view(guest.instance_id)
    assert view in await hosts.a.domains()
    assert view.power_state is PowerState.SHUTOFF
    assert view.persistent
    assert not view.active
    assert (view.epoch, view.definition_epoch, view.operation_id) == (1, 1, guest.operation_id)
    assert view.job is DomainJob.NONE
    assert view.machine_type == (await hosts.a.capabilities()).default_machine_type


async def test_a_guest_keeps_the_machine_type_it_names(hosts: Hosts) -> None:
    oldest = (await hosts.a.capabilities()).machine_types[0]
    view = await hosts.a.define(replace(hosts.described(), machine_type=oldest))
    assert view.machine_type == oldest


async def test_an_unknown_machine_type_is_refused_in_the_hypervisors_words(hosts: Hosts) -> None:
    guest = replace(hosts.described(), machine_type="pc-q35-99.0")
    with pytest.raises(RemudaError, match="pc-q35-99") as refused:
        await hosts.a.define(guest)
    assert refused.value.reason is Reason.HYPERVISOR_ERROR
    assert await hosts.a.view(guest.instance_id) is None


async def test_nothing_is_shown_of_a_guest_that_is_not_here(hosts: Hosts) -> None:
    assert await hosts.a.view(NOBODY) is None
    await hosts.a.destroy(NOBODY)
    await hosts.a.undefine(NOBODY)


@pytest.mark.parametrize(
    "act",
    [
        lambda h: h.start(NOBODY),
        lambda h: h.shutdown(NOBODY),
        lambda h: h.pause(NOBODY),
        lambda h: h.resume(NOBODY),
        lambda h: h.set_epoch(NOBODY, epoch=Epoch(2), operation_id=OTHER_OPERATION),
        lambda h: h.migrate(
            MigrationRequest(
                instance_id=NOBODY,
                operation_id=OTHER_OPERATION,
                target_epoch=Epoch(2),
                target_hostname="host2",
            )
        ),
        lambda h: h.job_stats(NOBODY),
        lambda h: h.completed_stats(NOBODY),
        lambda h: h.abort_job(NOBODY),
        lambda h: h.guest_agent_ping(NOBODY, timeout=1),
    ],
    ids=[
        *("start", "shutdown", "pause", "resume", "set_epoch"),
        *("migrate", "job_stats", "completed_stats", "abort_job", "guest_agent_ping"),
    ],
)
async def test_a_missing_domain_has_its_own_error(
    hosts: Hosts, act: Callable[[Hypervisor], Awaitable[object]]
) -> None:
    with pytest.raises(DomainMissing) as missing:
        await act(hosts.a)
    assert missing.value.instance_id == NOBODY
    assert missing.value.reason is Reason.HYPERVISOR_ERROR


async def test_every_power_verb_may_be_repeated(hosts: Hosts) -> None:
    guest = hosts.described()
    await hosts.a.define(guest)
    for verb, power_state, reason in (
        (hosts.a.start, PowerState.RUNNING, "booted"),
        (hosts.a.pause, PowerState.PAUSED, "user"),
        (hosts.a.resume, PowerState.RUNNING, "unpaused"),
        (hosts.a.destroy, PowerState.SHUTOFF, "destroyed"),
    ):
        for _ in range(2):
            await verb(guest.instance_id)
            view = await hosts.a.view(guest.instance_id)
            assert view is not None
            assert (view.power_state, view.reason) == (power_state, reason)
    # The power button of a machine that is off.
    await hosts.a.shutdown(guest.instance_id)
    for _ in range(2):
        await hosts.a.undefine(guest.instance_id)
        assert await hosts.a.view(guest.instance_id) is None


async def test_a_guest_that_is_off_is_neither_paused_nor_resumed(hosts: Hosts) -> None:
    guest = hosts.described()
    await hosts.a.define(guest)
    for verb in (hosts.a.pause, hosts.a.resume):
        with pytest.raises(RemudaError, match="not running") as refused:
            await verb(guest.instance_id)
        assert refused.value.reason is Reason.HYPERVISOR_ERROR
        assert not isinstance(refused.value, DomainMissing)


async def test_a_running_guest_keeps_its_definition(hosts: Hosts) -> None:
    guest = hosts.described()
    await hosts.a.define(guest)
    await hosts.a.start(guest.instance_id)
    with pytest.raises(RemudaError, match="active"):
        await hosts.a.undefine(guest.instance_id)
    view = await hosts.a.view(guest.instance_id)
    assert view is not None
    assert view.persistent


async def test_redefining_a_running_guest_changes_its_definition_only(hosts: Hosts) -> None:
    guest = hosts.described()
    await hosts.a.define(guest)
    await hosts.a.start(guest.instance_id)
    view = await hosts.a.define(replace(guest, epoch=Epoch(5)))
    assert (view.epoch, view.definition_epoch) == (1, 5)


@pytest.mark.parametrize("running", [True, False])
async def test_a_new_epoch_reaches_the_running_copy_and_the_definition(hosts: Hosts, running: bool) -> None:
    guest = hosts.described()
    await hosts.a.define(guest)
    if running:
        await hosts.a.start(guest.instance_id)
    await hosts.a.set_epoch(guest.instance_id, epoch=Epoch(7), operation_id=OTHER_OPERATION)
    for _ in range(2):
        view = await hosts.a.view(guest.instance_id)
        assert view is not None
        assert (view.epoch, view.definition_epoch, view.operation_id) == (7, 7, OTHER_OPERATION)
        await hosts.a.destroy(guest.instance_id)


async def test_a_killed_qemu_is_seen_as_a_crash(hosts: Hosts) -> None:
    guest = hosts.described()
    await hosts.a.define(guest)
    await hosts.a.start(guest.instance_id)
    hosts.kill_qemu(guest)

    async def crashed() -> bool:
        view = await hosts.a.view(guest.instance_id)
        return view is not None and view.power_state is PowerState.CRASHED

    await wait_for(crashed, timeout=60)
    await hosts.a.start(guest.instance_id)
    view = await hosts.a.view(guest.instance_id)
    assert view is not None
    assert view.power_state is PowerState.RUNNING


async def test_the_guests_own_shutdown_and_its_agent_are_seen(hosts: Hosts) -> None:
    guest = hosts.described(bootable=True)
    await hosts.a.define(guest)
    assert not await hosts.a.guest_agent_ping(guest.instance_id, timeout=1)
    await hosts.a.start(guest.instance_id)
    await hosts.wait_booted(guest)
    assert await wait_for(lambda: hosts.a.guest_agent_ping(guest.instance_id, timeout=2), timeout=60)
    await hosts.a.shutdown(guest.instance_id)

    async def off() -> bool:
        view = await hosts.a.view(guest.instance_id)
        return view is not None and (view.power_state, view.reason) == (PowerState.SHUTOFF, "shutdown")

    await wait_for(off, timeout=60)


async def test_events_begin_with_a_relist_and_tell_what_happens(hosts: Hosts) -> None:
    guest = hosts.described()
    wanted = [
        (EventKind.DEFINED, "added"),
        (EventKind.STARTED, "booted"),
        (EventKind.SUSPENDED, "paused"),
        (EventKind.RESUMED, "unpaused"),
        (EventKind.STOPPED, "destroyed"),
        (EventKind.UNDEFINED, "removed"),
    ]
    async with hosts.a.events() as events, hosts.a.events() as others:
        assert (await anext(events)).kind is EventKind.RELIST
        await hosts.a.define(guest)
        await hosts.a.start(guest.instance_id)
        await hosts.a.pause(guest.instance_id)
        await hosts.a.resume(guest.instance_id)
        await hosts.a.destroy(guest.instance_id)
        await hosts.a.undefine(guest.instance_id)
        heard: list[tuple[EventKind, str]] = []
        while not heard or heard[-1] != wanted[-1]:
            event = await anext(events)
            if event.instance_id == guest.instance_id:
                heard.append((event.kind, event.detail))
        # In this order, with others in between.
        remaining = iter(heard)
        assert all(one in remaining for one in wanted), heard
        assert (await anext(others)).kind is EventKind.RELIST
        assert (await anext(others)).kind is not EventKind.RELIST


async def test_another_connection_finds_what_runs(hosts: Hosts) -> None:
    guest = hosts.described()
    await hosts.a.define(guest)
    await hosts.a.start(guest.instance_id)
    async with hosts.reopened() as again:
        assert await again.view(guest.instance_id) == await hosts.a.view(guest.instance_id)
