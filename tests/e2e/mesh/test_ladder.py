"""A real migration that does not come to its end walks its rungs: what is done, told and recorded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import pytest
from google.protobuf.duration_pb2 import Duration
from remuda.compute.v1.instance_pb2 import Instance
from remuda.compute.v1.migration_pb2 import CommandResult, Migration, MigrationProgress, SetBandwidth
from remuda_core.errors import Reason
from remuda_core.rpc.status import from_status
from remuda_core.testing.premise import PremiseLost, set_up_again
from remuda_lab.demo_proof import Before, check_moved
from remuda_lab.mesh import Guest, Mesh

from tests.e2e.mesh.steering import RESTLESS, move, qemu, steering

pytestmark = pytest.mark.root

MEMORY = MigrationProgress.PHASE_MEMORY
CRAWL, SLOW, FAST = 1, 2, 6
"""MiB/s. A first pass at the slowest takes longer than the deadline below."""
DEADLINE_SECONDS = 20
LITTLE = 16 << 20
PACE = "[migration]\nfirst_downtime_ms = 1\nstall_seconds = 5.0\n"
"""Instead of 100 ms, which would be enough for this guest, and of 40 s."""


@pytest.fixture
def impatient(mesh: Mesh) -> Iterator[None]:
    """host1 climbs early."""
    file = mesh.lab.paths.host("host1").etc / "remuda" / "agent.toml"
    before = file.read_text()
    assert "[migration]\n" in before
    try:
        file.write_text(before.replace("[migration]\n", PACE))
        mesh.cluster.restart("host1")
        mesh.wait_hosts_up()
        yield
    finally:
        file.write_text(before)
        mesh.cluster.restart("host1")


def test_a_stalled_migration_walks_its_rungs_and_the_deadline_ends_one_that_has_none(
    mesh: Mesh, impatient: None
) -> None:
    guest = mesh.launch("stalled", host="host1", pool="shared", user_data=RESTLESS)
    walks_its_rungs(mesh, guest)
    is_aborted_at_its_deadline(mesh, guest)


@set_up_again
def walks_its_rungs(mesh: Mesh, guest: Guest) -> None:
    if guest.host() != "host1":
        # It has moved before it had a reason to climb.
        assert not mesh.wait_done(move(mesh, guest, "host1")).HasField("error")
    before, known = Before.of(guest), climbed(mesh)
    allowed = {"max_downtime_ms": 4, "auto_converge": True, "allow_post_copy": True}
    operation = move(mesh, guest, "host2", bandwidth_mib_s=FAST, **allowed)
    downtimes = set()
    with steering(mesh, operation) as client:
        client.until(MEMORY, iteration=1, remaining=LITTLE)
        slower = client.told("slower", set_bandwidth=SetBandwidth(mib_per_second=SLOW))
        assert slower.effect == CommandResult.EFFECT_APPLIED, slower
        with client.under_way():
            capabilities = qemu(mesh, "host1", guest, "query-migrate-capabilities")
            flags = {one["capability"] for one in capabilities if one["state"]}
            assert {"auto-converge", "postcopy-ram"} <= flags
            # Two steps of the pause, then auto-converge is given its time: half a minute to look.
            while 4 not in downtimes and client.ended is None:
                downtimes.add(qemu(mesh, "host1", guest, "query-migrate-parameters")["downtime-limit"])
        assert client.until_ended().state == Migration.STATE_DONE
    if 4 not in downtimes:
        raise PremiseLost(f"it ended while the pause was {downtimes} ms")
    check_moved(mesh, guest, before, source="host1", target="host2", pool="shared")
    record = mesh.migration_of(operation)
    rungs = [(one.type, one.detail.partition(";")[0]) for one in record.timeline if one.detail]
    assert [rung for rung in rungs if rung[0] == "DOWNTIME_RAISED"] == [
        ("DOWNTIME_RAISED", "1 ms to 2 ms"),
        ("DOWNTIME_RAISED", "2 ms to 4 ms"),
    ]
    # Unless the throttle was enough, as it may be where the guest has a processor to itself. What the ladder
    # does about the rest is played over a recorded job in tests/unit/migration.
    begun = [one.detail for one in record.timeline if one.type == "POST_COPY_BEGUN"]
    assert len(begun) <= 1
    assert all(why.startswith("the ladder: memory: never less than") for why in begun), begun
    assert {mesh.host_name(one.host) for one in record.timeline if one.detail} == {"host1"}
    assert climbed(mesh) - known == Counter({"DOWNTIME_RAISED": 2, "POST_COPY_BEGUN": len(begun)})


def climbed(mesh: Mesh) -> Counter[str]:
    """The rungs among the guest's events."""
    events = [event["type"] for event in mesh.cli().json("instance", "events", "stalled")]
    return Counter(event for event in events if event in ("DOWNTIME_RAISED", "POST_COPY_BEGUN"))


def is_aborted_at_its_deadline(mesh: Mesh, guest: Guest) -> None:
    before = Before.of(guest)
    deadline = Duration(seconds=DEADLINE_SECONDS)
    operation = move(mesh, guest, "host1", bandwidth_mib_s=CRAWL, max_downtime_ms=1, timeout=deadline)
    ended = mesh.wait_done(operation, timeout=120)
    error = from_status(ended.error)
    assert error.reason is Reason.MIGRATION_TIMEOUT, ended.error
    record = mesh.migration_of(operation)
    assert record.state == Migration.STATE_FAILED
    (why,) = [one.detail for one in record.timeline if one.type == "JOB_ABORTED"]
    assert why.startswith("no switch-over within"), why
    shown = json.loads(mesh.cli().run("migration", "show", record.name, "-o", "json"))
    assert why in str(shown["error"])
    assert guest.record().state == Instance.STATE_RUNNING
    assert (guest.host(), mesh.domains("host2")[guest.uid]) == ("host2", "running")
    assert mesh.traces("host1", guest.uid) == []
    after = guest.view.wait_tick(before.state.memory_tick)
    assert after.boot_nonce == before.state.boot_nonce
