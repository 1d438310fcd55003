"""Preflight of a guest on local disks: one condition is broken for real, and just that row refuses the move.

The guest is shared: a refused move leaves it as it was, and that is what the tests look at.
"""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from remuda.compute.v1.host_pb2 import Host
from remuda.compute.v1.moving_pb2 import MigrationCheck
from remuda_core.errors import Reason
from remuda_core.rpc.status import from_status
from remuda_lab.errors import CommandFailed
from remuda_lab.host_files import LIBVIRT_TLS_PORT, MIGRATION_PORTS
from remuda_lab.mesh import Mesh, unpack_metadata
from remuda_lab.waiting import wait_for

from tests.e2e.mesh import breaks
from tests.e2e.mesh.candidate import Candidate, names, rows_of
from tests.e2e.mesh.conftest import leaving_nothing

pytestmark = pytest.mark.root

FAIL, WARN, PASS = MigrationCheck.VERDICT_FAIL, MigrationCheck.VERDICT_WARN, MigrationCheck.VERDICT_PASS
UNKNOWN = MigrationCheck.VERDICT_UNKNOWN


@pytest.fixture(scope="module", autouse=True)
def nothing_left(mesh: Mesh) -> Iterator[None]:
    with leaving_nothing(mesh):
        yield


@pytest.fixture(scope="module")
def web(mesh: Mesh) -> Candidate:
    """On host1, with its disk on host1."""
    return Candidate(mesh=mesh, guest=mesh.launch("web", host="host1"))


def test_a_target_whose_name_is_not_known_is_refused_by_its_name(mesh: Mesh, web: Candidate) -> None:
    with breaks.forgetting(mesh, "host1", name="host2"):
        # What the name leads to cannot be asked: not known is not good enough either.
        rows = web.fails("host2", "HOSTNAME_RESOLUTION", unknown=("LIBVIRT_LISTENING",))
        row = rows["HOSTNAME_RESOLUTION"]
        assert "host2 is not resolved" in row.observed_source
        assert f"host2 as {mesh.lab.plan('host2').address}" in row.required
        assert row.fix.startswith("On host1: ")
        assert "See HOSTNAME_RESOLUTION" in rows["LIBVIRT_LISTENING"].fix
    web.passes("host2")
    with breaks.forgetting(mesh, "host2", name="host1"):
        row = web.fails("host2", "HOSTNAME_RESOLUTION")["HOSTNAME_RESOLUTION"]
        assert "host1 is not resolved" in row.observed_target
    web.passes("host2")


def test_a_libvirt_that_does_not_listen_is_found(mesh: Mesh, web: Candidate) -> None:
    with breaks.firewalled(mesh, "host2", ports=str(LIBVIRT_TLS_PORT), politely=True):
        row = web.fails("host2", "LIBVIRT_LISTENING")["LIBVIRT_LISTENING"]
        assert "qemu+tls://host2/system" in row.observed_source
        assert "refused" in row.observed_source
        assert "libvirtd-tls.socket" in row.fix
    assert "opened qemu+tls" in web.passes("host2")["LIBVIRT_LISTENING"].observed_source


def test_migration_ports_behind_a_firewall_are_found(mesh: Mesh, web: Candidate) -> None:
    ports = ":".join(map(str, MIGRATION_PORTS))
    with breaks.firewalled(mesh, "host2", ports=ports, politely=False):
        row = web.fails("host2", "MIGRATION_TRANSPORT")["MIGRATION_TRANSPORT"]
        assert "no answer within 3 s" in row.observed_source
        assert row.duration_ms >= 3000
        assert "port_min to port_max" in row.fix
    assert "connected to" in web.passes("host2")["MIGRATION_TRANSPORT"].observed_source


def test_a_bridge_that_is_missing_is_found(mesh: Mesh, web: Candidate) -> None:
    with breaks.without_bridge(mesh, "host2"):
        row = web.fails("host2", "NETWORK")["NETWORK"]
        assert row.observed_target == "no bridge for physnet"
        assert "make the bridge" in row.fix
    assert "physnet on br0" in web.passes("host2")["NETWORK"].observed_target


def test_a_local_pool_without_room_is_found(mesh: Mesh, web: Candidate) -> None:
    with breaks.full_pool(mesh, "host2", pool="local"):
        row = web.fails("host2", "STORAGE")["STORAGE"]
        assert "has 0 MiB free" in row.observed_target
        assert row.fix.startswith("Free space in pool 'local' on host2")
    web.passes("host2")


def test_a_config_drive_that_libvirt_would_not_copy_is_found(mesh: Mesh, web: Candidate) -> None:
    with breaks.attached(mesh, web.guest, *breaks.iso_config_drive(mesh, web.guest)):
        row = web.fails("host2", "CONFIG_DRIVE")["CONFIG_DRIVE"]
        assert row.observed_source == "sda: cdrom on scsi, raw, readonly"
        assert "vfat" in row.required
        assert "Stop the instance and start it again" in row.fix
    mesh.directory("host1", web.guest.uid).joinpath("config.iso").unlink()
    assert "vdb: disk on virtio" in web.passes("host2")["CONFIG_DRIVE"].observed_source


def test_a_device_of_the_host_inside_the_guest_is_found(mesh: Mesh, web: Candidate) -> None:
    with breaks.attached(mesh, web.guest, breaks.host_network_card()):
        row = web.fails("host2", "DEVICES")["DEVICES"]
        assert row.observed_source == "interface direct mgmt"
        assert "Detach the devices" in row.fix
    web.passes("host2")


def test_a_host_that_is_promised_to_others_is_found(mesh: Mesh, web: Candidate) -> None:
    with breaks.given_away(mesh, "host2", leaving_mib=95):
        row = web.fails("host2", "CAPACITY")["CAPACITY"]
        assert row.observed_target.startswith("0 of ")
        assert "96 MiB of memory" in row.required
        assert "Move or stop other instances on host2" in row.fix
    web.passes("host2")


def test_a_guest_that_writes_faster_than_the_link_is_warned_about_and_not_refused(
    mesh: Mesh, web: Candidate
) -> None:
    with breaks.writing_memory(mesh, web.guest), web.untouched():
        rows = rows_of(web.check("host2", bandwidth=1)["host2"])
        assert names(rows, FAIL) | names(rows, UNKNOWN) == set()
        row = rows["CONVERGENCE"]
        assert row.verdict == WARN
        assert "does not converge" in row.observed_source
        assert row.required.endswith("1 MiB/s as asked")
        assert "more than" in row.fix
        # A move takes the rate that was measured last.
        preview = unpack_metadata(web.ask("host2", validate_only=True, bandwidth=1)).preflight
        assert rows_of(preview)["CONVERGENCE"].verdict == WARN
        assert not preview.HasField("expected_duration")
    row = rows_of(web.check("host2", bandwidth=1000)["host2"])["CONVERGENCE"]
    assert row.verdict == PASS
    assert "converges in about" in row.observed_source


def test_a_target_whose_agent_is_down_is_not_available(mesh: Mesh, web: Candidate) -> None:
    mesh.cluster.kill("host2")
    try:
        gone = Host.STATE_UNREACHABLE
        wait_for("host2 is missed", lambda: mesh.host("host2").state == gone, timeout=60)
        with web.untouched():
            rows = rows_of(web.check("host2")["host2"])
            assert names(rows, FAIL) == {"TARGET_AVAILABLE"}
            assert rows["TARGET_AVAILABLE"].observed_target == "the host is unreachable"
            assert "Start its agent" in rows["TARGET_AVAILABLE"].fix
            # What only the target could have said is not known, in its own words.
            assert "STORAGE" in names(rows, UNKNOWN)
            assert "host2" in rows["STORAGE"].observed_target
            assert ("host2", "TARGET_AVAILABLE") in web.refused("host2")
    finally:
        mesh.cluster.start("host2")
        mesh.wait_hosts_up()
    web.passes("host2")


def test_a_check_without_effect_says_what_the_move_would(mesh: Mesh, web: Candidate) -> None:
    with web.untouched():
        preview = unpack_metadata(web.ask("host2", validate_only=True))
        assert preview.preflight.display_name == "host2"
        assert names(rows_of(preview.preflight), FAIL) == set()
        with breaks.without_bridge(mesh, "host2"), pytest.raises(grpc.RpcError) as caught:
            web.ask("host2", validate_only=True)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "refused by preflight (NETWORK)" in str(caught.value.details())


def test_all_hosts_are_checked_at_once_and_the_table_says_where_to_go(mesh: Mesh, web: Candidate) -> None:
    with breaks.without_bridge(mesh, "host2"), web.untouched():
        checked = web.check()
        assert list(checked) == ["host3", "host2"], "the best first"
        assert checked["host3"].probed
        assert checked["host3"].verdict in (PASS, WARN)
        assert checked["host2"].verdict == FAIL
        text = mesh.cli().run("instance", "check-migration", "web")
        assert text.startswith("web can move from host1 to host3 (about ")
        assert "FAIL  host2  NETWORK" in text
        assert "no bridge for physnet" in text


def test_a_host_that_is_cordoned_is_no_target_unless_it_is_named(mesh: Mesh, web: Candidate) -> None:
    with breaks.cordoned(mesh, "host2", "host3"):
        with web.untouched():
            for candidate in web.check().values():
                # Known without a probe, and so none is made.
                assert not candidate.probed
                (row,) = [one for one in candidate.checks if one.verdict == FAIL]
                assert row.condition == MigrationCheck.CONDITION_TARGET_AVAILABLE
                assert row.observed_target == "the host is cordoned"
            with pytest.raises(CommandFailed) as caught:
                mesh.cli().run("instance", "check-migration", "web")
            assert "web cannot move from host1" in caught.value.output
            assert "the host is cordoned" in caught.value.output
            ended = mesh.wait_done(web.ask().name)
            assert from_status(ended.error).reason is Reason.NO_HOST_FITS
        # Whoever names it may have cordoned it for just this.
        web.passes("host2")


def test_without_a_named_target_hosts_that_fail_are_passed_over_with_their_reasons(
    mesh: Mesh, web: Candidate
) -> None:
    """The last one here: in the end the guest does move."""
    libvirt = breaks.firewalled(mesh, "host2", ports=str(LIBVIRT_TLS_PORT), politely=True)
    with libvirt:
        with breaks.forgetting(mesh, "host3", name="host1"), web.untouched():
            # Seen to fail: nothing that held a moment ago is used again.
            web.check("host2"), web.check("host3")
            reasons = web.refused()
            assert reasons.keys() == {("host2", "LIBVIRT_LISTENING"), ("host3", "HOSTNAME_RESOLUTION")}
        operation = web.ask()
        assert not mesh.wait_done(operation.name).HasField("error")
    assert web.guest.host() == "host3"
    verdicts = {one.display_name: one for one in mesh.metadata(operation.name).placement.hosts}
    assert verdicts["host3"].eligible
    assert (verdicts["host2"].eligible, verdicts["host2"].filter) == (False, "preflight")
    assert "qemu+tls://host2/system" in verdicts["host2"].reason
    assert verdicts["host1"].reason == "it is the source"
