"""What preflight asks of a hypervisor, on both drivers."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from remuda_agent.hypervisor import CpuComparison, DomainDescription, DomainMissing
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import InstanceId

if TYPE_CHECKING:
    from tests.contract.hypervisor.conftest import Hosts

MIB = 1 << 20


async def running(hosts: Hosts) -> DomainDescription:
    guest = hosts.described()
    await hosts.a.define(guest)
    await hosts.a.start(guest.instance_id)
    return guest


async def test_a_running_guest_is_described_as_it_runs(hosts: Hosts) -> None:
    guest = await running(hosts)
    facts = await hosts.a.describe_guest(guest.instance_id)
    view = await hosts.a.view(guest.instance_id)
    assert view is not None
    assert facts.machine_type == view.machine_type
    assert (facts.domain_type, facts.architecture) == ("qemu", "x86_64")
    assert facts.memory_bytes == guest.memory_mib * MIB
    assert "qemu64" in facts.cpu_xml
    disk, drive = facts.disks
    assert (disk.target, disk.device, disk.bus, disk.format) == ("vda", "disk", "virtio", "qcow2")
    assert (drive.target, drive.device, drive.bus, drive.format) == ("vdb", "disk", "virtio", "raw")
    assert (disk.source, drive.source) == (str(guest.disk), str(guest.config_drive))
    assert (disk.readonly, drive.readonly) == (False, False)
    assert facts.host_devices == ()
    assert facts.dirty_bytes_per_second is None


async def test_a_guest_that_is_off_is_described_too(hosts: Hosts) -> None:
    guest = hosts.described()
    await hosts.a.define(guest)
    facts = await hosts.a.describe_guest(guest.instance_id)
    assert [disk.target for disk in facts.disks] == ["vda", "vdb"]
    assert facts.dirty_bytes_per_second is None


async def test_a_guest_that_is_not_there_cannot_be_described_or_measured(hosts: Hosts) -> None:
    nobody = InstanceId(str(uuid.uuid4()))
    with pytest.raises(DomainMissing):
        await hosts.a.describe_guest(nobody)
    with pytest.raises(DomainMissing):
        await hosts.a.measure_dirty_rate(nobody, seconds=1)


async def test_the_cpu_of_a_running_guest_fits_a_host_like_its_own(hosts: Hosts) -> None:
    guest = await running(hosts)
    facts = await hosts.a.describe_guest(guest.instance_id)
    for host in (hosts.b, hosts.a):
        verdict = await host.compare_cpu(facts)
        assert verdict.comparison in (CpuComparison.IDENTICAL, CpuComparison.SUPERSET), verdict


async def test_a_cpu_that_a_host_cannot_give_is_refused_with_what_is_missing(hosts: Hosts) -> None:
    guest = await running(hosts)
    facts, missing = hosts.beyond(await hosts.a.describe_guest(guest.instance_id))
    verdict = await hosts.b.compare_cpu(facts)
    assert verdict.comparison is CpuComparison.INCOMPATIBLE
    assert missing in verdict.detail


async def test_a_machine_type_that_is_not_offered_does_not_hide_the_cpus_answer(hosts: Hosts) -> None:
    guest = await running(hosts)
    facts = await hosts.a.describe_guest(guest.instance_id)
    verdict = await hosts.b.compare_cpu(replace(facts, machine_type="pc-q35-99.0"))
    assert verdict.comparison is not CpuComparison.INCOMPATIBLE


async def test_a_guest_of_another_architecture_is_refused(hosts: Hosts) -> None:
    guest = await running(hosts)
    facts = replace(await hosts.a.describe_guest(guest.instance_id), architecture="aarch64")
    verdict = await hosts.b.compare_cpu(facts)
    assert verdict.comparison is CpuComparison.INCOMPATIBLE
    assert "aarch64" in verdict.detail


async def test_a_dirty_rate_is_measured_and_known_afterwards(hosts: Hosts) -> None:
    guest = await running(hosts)
    rate = await hosts.a.measure_dirty_rate(guest.instance_id, seconds=1)
    assert rate >= 0
    assert (await hosts.a.describe_guest(guest.instance_id)).dirty_bytes_per_second == rate
    again = await hosts.a.measure_dirty_rate(guest.instance_id, seconds=1)
    assert (await hosts.a.describe_guest(guest.instance_id)).dirty_bytes_per_second == again


async def test_a_guest_that_is_off_dirties_nothing_that_could_be_measured(hosts: Hosts) -> None:
    guest = hosts.described()
    await hosts.a.define(guest)
    with pytest.raises(RemudaError) as refused:
        await hosts.a.measure_dirty_rate(guest.instance_id, seconds=1)
    assert refused.value.reason is Reason.HYPERVISOR_ERROR


async def test_another_hosts_libvirt_says_its_name(hosts: Hosts) -> None:
    assert await hosts.opened("host2") == "host2"


async def test_a_libvirt_that_does_not_listen_refuses_in_words(hosts: Hosts) -> None:
    with pytest.raises(RemudaError, match="refused") as refused:
        await hosts.opened("host2", transport=hosts.refuse_peers())
    assert refused.value.reason is Reason.HYPERVISOR_ERROR


async def test_a_host_whose_name_nobody_knows_cannot_be_opened(hosts: Hosts) -> None:
    with pytest.raises(RemudaError, match="nowhere"):
        await hosts.opened("nowhere.invalid")


async def test_a_libvirt_behind_a_cut_cable_is_given_up_in_time(hosts: Hosts) -> None:
    hosts.cut_off()
    try:
        started = time.monotonic()
        with pytest.raises(RemudaError, match=r"did not answer within 2 s|No route to host"):
            await hosts.opened("host2", patience=2)
        assert time.monotonic() - started < 60
    finally:
        hosts.cut_off(again=True)


@pytest.mark.parametrize(
    ("hostname", "transport"), [("host2/system?socket=/x", "tls"), ("", "tls"), ("host2", "ssh")]
)
async def test_names_and_transports_that_are_none_never_reach_libvirt(
    hosts: Hosts, hostname: str, transport: str
) -> None:
    with pytest.raises(RemudaError) as refused:
        await hosts.a.open_peer(hostname, transport=transport, patience=2)
    assert refused.value.reason is Reason.INVALID_ARGUMENT
