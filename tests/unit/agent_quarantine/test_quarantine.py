"""An agent's quarantine: what it refuses, in which words, and what it keeps on disk."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from remuda.agent.v1.common_pb2 import LeaderRef
from remuda.scheduler.v1.registry_pb2 import Verdict
from remuda_agent.leaders import LeaderGuard
from remuda_agent.quarantine import Decision, Found, Quarantine
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import Epoch, InstanceId

WEB, DB = InstanceId("web"), InstanceId("db")
ONE, TWO = Epoch(1), Epoch(2)
LEADER = LeaderRef(cluster_id=7, epoch=5)
KEEP, HOLD, RELEASE = Verdict.DECISION_KEEP, Verdict.DECISION_HOLD, Verdict.DECISION_RELEASE


class Host:
    """Opens the quarantine of one state directory; `rang` counts how often a change was told."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.rang = 0
        self.found = Found(copies={})

    async def boot(self, boot_id: str, found: Mapping[InstanceId, Epoch] | None = None) -> Quarantine:
        self.found = Found(copies=found or {})
        return await Quarantine.open(
            self.directory, boot_id, self.find, leaders=LeaderGuard(self.directory), changed=self.ring
        )

    async def find(self) -> Found:
        return self.found

    def ring(self) -> None:
        self.rang += 1


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "state")


def verdict(instance: InstanceId, epoch: Epoch, decision: "Verdict.Decision.ValueType") -> Verdict:
    return Verdict(instance_id=instance, epoch=epoch, decision=decision)


def refusal(quarantine: Quarantine, instance: InstanceId, epoch: Epoch) -> RemudaError:
    with pytest.raises(RemudaError) as refused:
        quarantine.require(instance, epoch)
    return refused.value


async def test_a_copy_found_after_a_boot_is_refused_until_the_leader_keeps_it(host: Host) -> None:
    await (await host.boot("boot-1")).ordered(WEB, ONE)
    booted = await host.boot("boot-2", {WEB: ONE})
    error = refusal(booted, WEB, ONE)
    assert error.reason is Reason.QUARANTINED
    assert error.metadata == {"instance": "web", "epoch": "1", "decision": "NONE"}
    assert error.retry_after_seconds
    assert booted.warnings == ["1 copy waits for confirmation since the host was booted"]
    await booted.hear(LEADER, [verdict(WEB, ONE, HOLD)])
    assert refusal(booted, WEB, ONE).metadata["decision"] == "HOLD"
    await booted.hear(LEADER, [verdict(WEB, ONE, KEEP)])
    booted.require(WEB, ONE)
    assert (dict(booted.waiting), booted.warnings, host.rang) == ({}, [], 2)


async def test_a_keep_is_good_for_exactly_its_epoch(host: Host) -> None:
    quarantine = await host.boot("boot-1", {WEB: TWO})
    await quarantine.hear(LEADER, [verdict(WEB, ONE, KEEP)])
    assert refusal(quarantine, WEB, TWO).reason is Reason.QUARANTINED


async def test_an_agent_restarted_within_one_boot_knows_what_it_knew(host: Host) -> None:
    quarantine = await host.boot("boot-1", {WEB: ONE})
    await quarantine.ordered(DB, TWO)
    await quarantine.hear(LEADER, [verdict(WEB, ONE, KEEP)])
    again = await host.boot("boot-1", {WEB: ONE, DB: TWO})
    again.require(WEB, ONE)
    again.require(DB, TWO)
    assert not again.waiting


async def test_a_released_copy_is_refused_for_good_over_restarts_and_boots(host: Host) -> None:
    quarantine = await host.boot("boot-1", {WEB: ONE})
    await quarantine.hear(LEADER, [verdict(WEB, ONE, RELEASE)])
    for boot_id in ("boot-1", "boot-2"):
        again = await host.boot(boot_id, {WEB: ONE})
        assert refusal(again, WEB, ONE).reason is Reason.STALE_EPOCH
        assert again.counts == {Decision.RELEASE: 1}
        assert again.warnings == ["1 stale copy waits to be removed"]
        await again.hear(LEADER, [verdict(WEB, ONE, KEEP)])
        assert refusal(again, WEB, ONE).reason is Reason.STALE_EPOCH
        with pytest.raises(RemudaError) as refused:
            await again.ordered(WEB, ONE)
        assert refused.value.reason is Reason.STALE_EPOCH


async def test_a_source_that_was_released_is_refused_though_no_copy_is_left(host: Host) -> None:
    quarantine = await host.boot("boot-1", {WEB: ONE})
    await quarantine.given_up(WEB, ONE)
    assert refusal(quarantine, WEB, ONE).reason is Reason.STALE_EPOCH
    assert not quarantine.waiting
    # It comes back with a later epoch.
    await quarantine.ordered(WEB, TWO)
    quarantine.require(WEB, TWO)


async def test_a_copy_removed_by_order_waits_for_nothing(host: Host) -> None:
    quarantine = await host.boot("boot-1", {WEB: ONE, DB: TWO})
    await quarantine.removed(WEB, ONE)
    assert list(quarantine.waiting) == [DB]
    assert host.rang == 1


async def test_a_copy_removed_by_other_hands_waits_for_nothing(host: Host) -> None:
    quarantine = await host.boot("boot-1", {WEB: ONE, DB: TWO})
    host.found = Found(copies={DB: TWO}, complete=False)
    await quarantine.look_again()
    assert set(quarantine.waiting) == {WEB, DB}, "it may only not have been seen"
    host.found = Found(copies={DB: TWO})
    await quarantine.look_again()
    assert (set(quarantine.waiting), host.rang) == ({DB}, 1)


async def test_the_word_of_an_older_leader_lifts_nothing(host: Host) -> None:
    LeaderGuard(host.directory).acknowledge(LeaderRef(cluster_id=7, epoch=6))
    quarantine = await host.boot("boot-1", {WEB: ONE})
    with pytest.raises(RemudaError) as refused:
        await quarantine.hear(LEADER, [verdict(WEB, ONE, KEEP)])
    assert refused.value.reason is Reason.STALE_LEADER
    assert refusal(quarantine, WEB, ONE).reason is Reason.QUARANTINED


async def test_a_verdict_ends_the_orders_of_the_leader_before(host: Host) -> None:
    leaders = LeaderGuard(host.directory)
    quarantine = await Quarantine.open(host.directory, "boot-1", host.find, leaders=leaders)
    await quarantine.hear(LEADER, [verdict(WEB, ONE, KEEP)])
    with pytest.raises(RemudaError) as refused:
        leaders.check(LeaderRef(cluster_id=7, epoch=4))
    assert refused.value.reason is Reason.STALE_LEADER


async def test_a_damaged_record_confirms_nothing(host: Host) -> None:
    quarantine = await host.boot("boot-1")
    await quarantine.ordered(WEB, ONE)
    (host.directory / "quarantine.json").write_text('{"boot_id": "boot-1"')
    assert refusal(await host.boot("boot-1", {WEB: ONE}), WEB, ONE).reason is Reason.QUARANTINED
