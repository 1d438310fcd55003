"""libvirtd may go away and come back; guests, and the agent's driver, outlive that."""

from __future__ import annotations

import asyncio
import signal

import pytest
from remuda_agent.hypervisor import EventKind
from remuda_agent.hypervisor.libvirt import open_libvirt
from remuda_agent.probe.domain_type import DomainType
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import InstanceId
from remuda_core.testing.waiting import wait_for
from remuda_lab.lab import Lab
from remuda_lab.testing import bare_lab

__all__ = ["bare_lab"]

pytestmark = [pytest.mark.root]

TCG = DomainType(name="qemu", reason="the lab's guests are small", proven=True)
FOREIGN = """<domain type='qemu'><name>foreign</name><uuid>5c2b5b0e-0f0e-4f53-9a5b-0123456789ab</uuid>
<memory unit='MiB'>64</memory><os><type arch='x86_64' machine='q35'>hvm</type></os></domain>"""


async def test_the_driver_reconnects_and_asks_for_a_look_at_everything(bare_lab: Lab) -> None:
    async with open_libvirt(bare_lab.host("host1").libvirt_uri, TCG) as driver, driver.events() as events:
        assert (await anext(events)).kind is EventKind.RELIST
        bare_lab.send_signal("host1", "libvirtd", signal.SIGKILL)
        async with asyncio.timeout(60):
            assert (await anext(events)).kind is EventKind.RELIST
        assert await driver.domains() == []
        # Registered again, too.
        await asyncio.to_thread(_define_foreign, bare_lab)
        try:
            async with asyncio.timeout(60):
                assert (await anext(events)).kind is EventKind.DEFINED
        finally:
            await asyncio.to_thread(bare_lab.host("host1").virsh, "undefine", "foreign")


async def test_a_look_right_after_the_restart_is_repeated_by_the_driver(bare_lab: Lab) -> None:
    async with open_libvirt(bare_lab.host("host2").libvirt_uri, TCG) as driver:
        before = await driver.capabilities()
        bare_lab.send_signal("host2", "libvirtd", signal.SIGKILL)

        async def same() -> bool:
            return await driver.capabilities() == before

        await wait_for(same, timeout=60, ignoring=(RemudaError,))


async def test_domains_of_others_are_not_shown(bare_lab: Lab) -> None:
    await asyncio.to_thread(_define_foreign, bare_lab)
    try:
        async with open_libvirt(bare_lab.host("host1").libvirt_uri, TCG) as driver:
            assert await driver.domains() == []
            assert await driver.view(InstanceId("5c2b5b0e-0f0e-4f53-9a5b-0123456789ab")) is None
    finally:
        await asyncio.to_thread(bare_lab.host("host1").virsh, "undefine", "foreign")


async def test_without_libvirtd_the_driver_does_not_open() -> None:
    with pytest.raises(RemudaError) as refused:
        async with open_libvirt("qemu+unix:///system?socket=/nonexistent/libvirt-sock", TCG):
            pass
    assert refused.value.reason is Reason.HYPERVISOR_ERROR
    assert "libvirt-sock" in str(refused.value)


async def test_a_closed_driver_ends_its_events_and_refuses_calls(bare_lab: Lab) -> None:
    async with open_libvirt(bare_lab.host("host3").libvirt_uri, TCG) as driver:
        subscription = driver.events()
        events = await subscription.__aenter__()
    assert [event.kind async for event in events] == [EventKind.RELIST]
    await subscription.__aexit__(None, None, None)
    with pytest.raises((RemudaError, RuntimeError)):
        await driver.domains()


def _define_foreign(lab: Lab) -> None:
    lab.host("host1").run(["virsh", "-q", "define", "/dev/stdin"], stdin=FOREIGN)
