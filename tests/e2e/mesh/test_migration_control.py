"""Migrations of real guests, steered while they run: by two clients at once, and by the command line.

They are slow to move because the rate is capped. A restless one rewrites more than 2 MiB/s can send within a
pause of 1 ms: it does not come to the end. Where it does all the same, the test begins again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from remuda.compute.v1.instance_pb2 import Instance
from remuda.compute.v1.migration_pb2 import (
    CommandResult,
    GiveUp,
    Migration,
    MigrationProgress,
    PauseAndFinish,
    SetBandwidth,
    SetMaxDowntime,
    SwitchToPostCopy,
)
from remuda_core.errors import Reason
from remuda_core.rpc.status import from_rpc_error
from remuda_core.testing.premise import PremiseLost, set_up_again
from remuda_lab.demo_proof import Before, check_moved
from remuda_lab.mesh import Guest, Mesh
from remuda_lab.waiting import wait_for

from tests.e2e.mesh.conftest import leftovers
from tests.e2e.mesh.steering import PATIENCE, RESTLESS, command_line, move, qemu, refused, steering

pytestmark = pytest.mark.root

APPLIED, DEFERRED = CommandResult.EFFECT_APPLIED, CommandResult.EFFECT_DEFERRED_TO_MEMORY_PHASE
DISKS, MEMORY = MigrationProgress.PHASE_DISKS, MigrationProgress.PHASE_MEMORY
CRAWL, SLOW, FAST = 1, 2, 6
"""MiB/s. A first pass at the slowest takes longer than everything that is asked during it."""
LITTLE = 16 << 20
FILLER = "#!/bin/sh\ndd if=/dev/urandom of=/dev/vda1 bs=1M count=24; sync\n"
"""Its kernel has long been loaded. QEMU sends 16 MiB of a disk before it thinks of the cap."""


@pytest.fixture(autouse=True)
def nothing_left(mesh: Mesh) -> Iterator[None]:
    """But one guest, which goes to and fro in nearly all tests here: no test leaves it on its way."""
    mesh.wait_hosts_up()
    yield
    for instance in mesh.cli().json("instance", "list"):
        if operation := instance.get("operation"):
            mesh.cli().run("operation", "cancel", operation.rpartition("/")[2])


@pytest.fixture(scope="module")
def guest(mesh: Mesh) -> Iterator[Guest]:
    """On a pool that host1 and host2 share."""
    guest = mesh.launch("steered", host="host1", pool="shared", user_data=RESTLESS)
    yield guest
    guest.delete()
    wait_for("nothing is left", lambda: not leftovers(mesh), timeout=90, status=lambda: leftovers(mesh))


def route(guest: Guest) -> tuple[str, str]:
    """Where it is, and where it can go."""
    here = guest.host()
    return here, "host2" if here == "host1" else "host1"


def pause_note(mesh: Mesh, host: str, guest: Guest) -> Path:
    """On the source's disk while the guest stands still for its migration."""
    return mesh.lab.paths.host(host).state / "migrations" / f"{guest.uid}.paused"


def at_source(mesh: Mesh, guest: Guest, source: str, target: str, before: Before) -> None:
    """It runs there as if nothing had been tried, and nothing is at the target."""
    assert mesh.domains(source).get(guest.uid) == "running"
    assert mesh.traces(target, guest.uid, pool="local") == []
    record = guest.wait_record(lambda one: not one.operation)
    assert (record.state, guest.host()) == (Instance.STATE_RUNNING, source)
    after = guest.view.wait_tick(before.state.memory_tick)
    assert after.boot_nonce == before.state.boot_nonce


@set_up_again
def test_two_clients_steer_a_migration_that_could_not_end(mesh: Mesh, guest: Guest) -> None:
    source, target = route(guest)
    before = Before.of(guest)
    operation = move(mesh, guest, target, bandwidth_mib_s=SLOW, max_downtime_ms=1)
    with steering(mesh, operation) as one, steering(mesh, operation) as other:
        one.until(MEMORY)
        other.until(MEMORY)
        wait_for("a rate is seen", lambda: len(other.rates()) > 1, timeout=60)
        slow, asked = other.rates(), len(other.progress)
        faster = one.told("1", set_bandwidth=SetBandwidth(mib_per_second=FAST))
        assert (faster.effect, faster.phase) == (APPLIED, MEMORY), faster
        one.until(MEMORY, iteration=1, remaining=LITTLE)
        # The same id from another client is another command.
        slower = other.told("1", set_bandwidth=SetBandwidth(mib_per_second=SLOW))
        assert (slower.effect, "1" in one.results) == (APPLIED, True), slower
        assert one.results["1"] == faster
        assert max(slow[1:]) < 1.5 * SLOW, "the cap of the start"
        assert max(other.rates(asked)) > 2 * SLOW, "the job's own figures follow, for every client"
        one.until(MEMORY, iteration=2)
        refused(one.ask("2", switch_to_post_copy=SwitchToPostCopy()), MEMORY)
        now = max(seen.iteration for seen in one.progress)
        one.until(MEMORY, iteration=now + 2)
        with one.under_way():
            parameters = qemu(mesh, source, guest, "query-migrate-parameters")
            assert (parameters["downtime-limit"], parameters["max-bandwidth"] >> 20) == (1, SLOW)
            longer = command_line(mesh, "set-max-downtime", "steered", "8s")
        assert longer["effect"] == "EFFECT_APPLIED", longer
        for client in (one, other):
            assert client.until_ended().state == Migration.STATE_DONE
    assert not mesh.wait_done(operation).HasField("error")
    check_moved(mesh, guest, before, source=source, target=target, pool="shared")
    record = mesh.migration_of(operation)
    applied = [one.detail for one in record.timeline if one.type == "COMMAND_APPLIED"]
    assert [detail.partition(";")[0] for detail in applied] == [
        f"set_bandwidth: at most {FAST} MiB/s",
        f"set_bandwidth: at most {SLOW} MiB/s",
        "set_max_downtime: at most 8000 ms",
    ]
    assert record.iterations > 3
    assert record.downtime_ms > 0
    with steering(mesh, operation) as late:
        failure = wait_for("it is refused", lambda: late.failure, timeout=60)
    assert from_rpc_error(failure).reason is Reason.COMMAND_REFUSED  # type: ignore[arg-type]


@set_up_again
def test_a_guest_is_paused_by_a_command_and_goes_on_at_the_target(mesh: Mesh, guest: Guest) -> None:
    source, target = route(guest)
    before = Before.of(guest)
    operation = move(mesh, guest, target, bandwidth_mib_s=FAST, max_downtime_ms=1)
    with steering(mesh, operation) as one:
        one.until(MEMORY)
        result = one.told("finish", pause_and_finish=PauseAndFinish())
        assert (result.effect, result.phase) == (APPLIED, MEMORY), result
        assert one.until_ended().state == Migration.STATE_DONE
    check_moved(mesh, guest, before, source=source, target=target, pool="shared")
    assert not pause_note(mesh, source, guest).exists()
    timeline = {one.type: one for one in mesh.migration_of(operation).timeline}
    assert timeline["GUEST_PAUSED"].detail == "a command"
    assert mesh.host_name(timeline["GUEST_PAUSED"].host) == source
    assert "GUEST_PAUSED" in [event["type"] for event in mesh.cli().json("instance", "events", "steered")]


@set_up_again
def test_a_cancel_lets_a_guest_go_on_that_was_paused_for_its_migration(mesh: Mesh, guest: Guest) -> None:
    source, target = route(guest)
    before = Before.of(guest)
    operation = move(mesh, guest, target, bandwidth_mib_s=CRAWL, max_downtime_ms=1)
    with steering(mesh, operation) as one:
        one.until(MEMORY)
        with one.under_way():
            assert command_line(mesh, "pause-and-finish", "steered")["effect"] == "EFFECT_APPLIED"
            assert mesh.domains(source)[guest.uid] == "paused"
            assert pause_note(mesh, source, guest).exists(), "whoever finds the guest so knows why"
            assert command_line(mesh, "cancel", "steered")["effect"] == "EFFECT_APPLIED"
        assert one.until_ended().state == Migration.STATE_CANCELLED
    at_source(mesh, guest, source, target, before)
    assert not pause_note(mesh, source, guest).exists()


@set_up_again
def test_post_copy_is_commanded_where_it_was_allowed(mesh: Mesh, guest: Guest) -> None:
    source, target = route(guest)
    before = Before.of(guest)
    operation = move(mesh, guest, target, bandwidth_mib_s=4, max_downtime_ms=1, allow_post_copy=True)
    with steering(mesh, operation) as one:
        one.until(MEMORY)
        with one.under_way():
            on = {
                flag["capability"]
                for flag in qemu(mesh, source, guest, "query-migrate-capabilities")
                if flag["state"]
            }
            assert "postcopy-ram" in on
            assert command_line(mesh, "switch-to-post-copy", "steered")["effect"] == "EFFECT_APPLIED"
        # It runs at the target by now, and comes back by a migration only.
        late = one.ask("late", cancel=GiveUp())
        refused_phase = MigrationProgress.PHASE_FINISHING
        assert (late.effect, late.phase) == (CommandResult.EFFECT_REFUSED, refused_phase), late
        assert "too late" in late.observed
        assert one.until_ended().state == Migration.STATE_DONE
    check_moved(mesh, guest, before, source=source, target=target, pool="shared")
    timeline = {one.type: one.detail for one in mesh.migration_of(operation).timeline}
    assert timeline["POST_COPY_BEGUN"] == "a command"


@set_up_again
def test_while_disks_are_copied_a_cap_is_deferred_a_pause_refused_and_a_cancel_obeyed(mesh: Mesh) -> None:
    guest = mesh.launch("disks", host="host1", user_data=FILLER)
    try:
        wait_for("its disk is filled", lambda: guest.view.state().user_data == "exit 0", timeout=180)
        before = Before.of(guest)
        operation = move(mesh, guest, "host3", bandwidth_mib_s=1, max_downtime_ms=1, allow_post_copy=True)
        with steering(mesh, operation) as one:
            one.until(DISKS)
            one.tell("pause", pause_and_finish=PauseAndFinish())
            one.tell("post-copy", switch_to_post_copy=SwitchToPostCopy())
            one.tell("downtime", set_max_downtime=SetMaxDowntime(max_downtime_ms=2))
            one.tell("cap", set_bandwidth=SetBandwidth(mib_per_second=SLOW))
            asked = [one.answer(name) for name in ("pause", "post-copy", "downtime", "cap")]
            if DISKS not in {answer.phase for answer in asked}:
                one.ask("stop", cancel=GiveUp())
                mesh.wait_done(operation, timeout=PATIENCE)
                raise PremiseLost(f"the disks were copied before the commands came: {asked}")
            for name in ("pause", "post-copy"):
                refused(one.answer(name), DISKS)
            for name, effect in (("downtime", APPLIED), ("cap", DEFERRED)):
                assert (one.answer(name).effect, one.answer(name).phase) == (effect, DISKS), one.results
            stopped = one.ask("stop", cancel=GiveUp())
            assert stopped.effect == APPLIED, stopped
            assert one.until_ended().state == Migration.STATE_CANCELLED
            assert MEMORY not in {seen.phase for seen in one.progress}, "before any memory was sent"
        at_source(mesh, guest, "host1", "host3", before)
    finally:
        guest.delete()
