"""What snapshots ask of a hypervisor, on both drivers."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from remuda_agent.hypervisor import BackupRequest, DomainDescription, DomainMissing, Hypervisor, PowerState
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import InstanceId
from remuda_core.testing.waiting import wait_for

if TYPE_CHECKING:
    from tests.contract.hypervisor.conftest import Hosts

NOBODY = InstanceId(str(uuid.uuid4()))


def backup(guest: DomainDescription, **more: str) -> BackupRequest:
    directory = guest.disk.parent
    return BackupRequest(
        instance_id=guest.instance_id,
        socket=directory / "nbd",
        scratch=directory / f"scratch-{uuid.uuid4()}",
        **more,
    )


async def running(hosts: Hosts, *, bootable: bool = False) -> DomainDescription:
    guest = hosts.described(bootable=bootable)
    await hosts.a.define(guest)
    await hosts.a.start(guest.instance_id)
    return guest


async def job(hosts: Hosts, guest: DomainDescription) -> str:
    view = await hosts.a.view(guest.instance_id)
    assert view is not None
    return view.job


async def test_a_backup_lasts_until_it_is_ended_and_the_guest_goes_on(hosts: Hosts) -> None:
    guest = await running(hosts)
    await hosts.a.end_backup(guest.instance_id)  # there is none
    await hosts.a.begin_backup(backup(guest))
    assert await job(hosts, guest) == "OTHER"
    async with hosts.reopened() as again:
        assert [view.job for view in await again.domains()] == ["OTHER"]
        await again.end_backup(guest.instance_id)
    assert await job(hosts, guest) == "NONE"
    view = await hosts.a.view(guest.instance_id)
    assert view is not None
    assert view.power_state is PowerState.RUNNING
    await hosts.a.begin_backup(backup(guest))
    await hosts.a.destroy(guest.instance_id)
    assert await job(hosts, guest) == "NONE"
    await hosts.a.end_backup(guest.instance_id)
    with pytest.raises(RemudaError) as off:
        await hosts.a.begin_backup(backup(guest))
    assert off.value.reason is Reason.HYPERVISOR_ERROR


async def test_a_checkpoint_is_made_with_a_backup_and_the_next_one_may_begin_there(hosts: Hosts) -> None:
    guest = await running(hosts)
    assert await hosts.a.checkpoints(guest.instance_id) == []
    with pytest.raises(RemudaError) as unknown:
        await hosts.a.begin_backup(backup(guest, since="remuda-0"))
    assert unknown.value.reason is Reason.HYPERVISOR_ERROR
    assert await job(hosts, guest) == "NONE"
    await hosts.a.begin_backup(backup(guest, checkpoint="remuda-1"))
    await hosts.a.end_backup(guest.instance_id)
    await hosts.a.begin_backup(backup(guest, since="remuda-1", checkpoint="remuda-2"))
    await hosts.a.end_backup(guest.instance_id)
    assert await hosts.a.checkpoints(guest.instance_id) == ["remuda-1", "remuda-2"]
    await hosts.a.delete_checkpoint(guest.instance_id, "remuda-1")
    await hosts.a.delete_checkpoint(guest.instance_id, "remuda-1")
    assert await hosts.a.checkpoints(guest.instance_id) == ["remuda-2"]
    await hosts.a.destroy(guest.instance_id)
    assert await hosts.a.checkpoints(guest.instance_id) == ["remuda-2"]
    await hosts.a.delete_checkpoint(guest.instance_id, "remuda-2")
    assert await hosts.a.checkpoints(guest.instance_id) == []
    await hosts.a.undefine(guest.instance_id)


@pytest.mark.parametrize("shared", [False, True], ids=["block", "shared"])
async def test_a_guest_is_moved_without_its_checkpoints(hosts: Hosts, shared: bool) -> None:
    guest = hosts.described(shared=shared)
    await hosts.a.define(guest)
    await hosts.a.start(guest.instance_id)
    await hosts.a.begin_backup(backup(guest, checkpoint="remuda-1"))
    await hosts.a.end_backup(guest.instance_id)
    if not shared:
        hosts.receive(guest)
    await hosts.a.migrate(hosts.request(guest, shared=shared))
    for host in (hosts.a, hosts.b):
        assert await host.checkpoints(guest.instance_id) == []
    await hosts.a.undefine(guest.instance_id)
    await hosts.b.begin_backup(backup(guest, checkpoint="remuda-1"))
    await hosts.b.end_backup(guest.instance_id)


async def test_a_frozen_guest_is_thawed_when_it_is_said_and_when_the_guard_is_left(hosts: Hosts) -> None:
    guest = await running(hosts, bootable=True)
    await hosts.wait_booted(guest)

    async def answers() -> bool:
        return await hosts.a.guest_agent_ping(guest.instance_id, timeout=5)

    await wait_for(answers, timeout=60, last_status=lambda: "the guest agent is silent")
    async with hosts.a.guarded(guest.instance_id, limit=100) as guard:
        assert not await guard.thaw(), "nothing was frozen"
        await guard.freeze()
        await hosts.a.begin_backup(backup(guest))
        assert await guard.thaw()
        assert not await guard.thaw()
        await guard.settle()
        await hosts.a.end_backup(guest.instance_id)
        await guard.freeze()
    async with hosts.a.guarded(guest.instance_id, limit=100) as guard:
        assert not await guard.thaw(), "it was thawed when the guard was left"
    view = await hosts.a.view(guest.instance_id)
    assert view is not None
    assert view.power_state is PowerState.RUNNING
    await hosts.a.pause(guest.instance_id)
    async with hosts.a.guarded(guest.instance_id, limit=100) as guard:
        with pytest.raises(RemudaError) as refused:
            await guard.freeze()
        assert refused.value.reason is Reason.QUIESCE_FAILED
        await guard.settle()
    view = await hosts.a.view(guest.instance_id)
    assert view is not None
    assert view.power_state is PowerState.PAUSED, "whoever was paused before stays so"


@pytest.mark.parametrize(
    "act",
    [
        lambda h: h.begin_backup(
            BackupRequest(instance_id=NOBODY, socket=Path("/nowhere/nbd"), scratch=Path("/nowhere/scratch"))
        ),
        lambda h: h.end_backup(NOBODY),
        lambda h: h.checkpoints(NOBODY),
        lambda h: h.delete_checkpoint(NOBODY, "remuda-1"),
    ],
    ids=["begin_backup", "end_backup", "checkpoints", "delete_checkpoint"],
)
async def test_a_missing_domain_has_its_own_error(
    hosts: Hosts, act: Callable[[Hypervisor], Awaitable[object]]
) -> None:
    with pytest.raises(DomainMissing):
        await act(hosts.a)


async def test_nobody_cannot_be_guarded(hosts: Hosts) -> None:
    with pytest.raises(RemudaError) as refused:
        async with hosts.a.guarded(NOBODY, limit=1):
            pass
    assert refused.value.reason is Reason.HYPERVISOR_ERROR
