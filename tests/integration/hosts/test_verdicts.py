"""The leader's verdicts on copies: said once, lifted or kept by the agent, seen by people."""

import asyncio
import errno
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest
from remuda.agent.v1 import agent_pb2
from remuda.agent.v1.common_pb2 import LeaderRef, StepKey
from remuda.compute.v1.instance_pb2 import Instance
from remuda.scheduler.v1.registry_pb2 import Observations, ObservedInstance, Verdict
from remuda.store.v1.instance_pb2 import Claim, InstanceStatus
from remuda_agent.hypervisor import DomainDescription
from remuda_agent.leaders import LeaderGuard
from remuda_agent.quarantine import Standing, file
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import Epoch, HostId, InstanceId, OperationId
from remuda_core.testing.waiting import wait_for
from remuda_scheduler.hosts.judge import STALE_COPY

from tests.integration.hosts.conftest import (
    DUPLICATE_SECONDS,
    WAIT_SECONDS,
    FakeAgent,
    Hosts,
    Peer,
    Scheduler,
)

KEEP, HOLD, RELEASE = Verdict.DECISION_KEEP, Verdict.DECISION_HOLD, Verdict.DECISION_RELEASE


@dataclass(kw_only=True)
class Machine:
    """A fake host that can lose its power."""

    hosts: Hosts
    agent: FakeAgent
    boots: int = 1

    @classmethod
    async def of(cls, hosts: Hosts, name: str) -> "Machine":
        file = hosts.directory / f"{name}.boot"
        file.write_text("boot-1")
        return cls(hosts=hosts, agent=await hosts.agent(name, boot_id_file=file))

    async def power_fail(self) -> None:
        await self.agent.end()
        self.hosts.fabric.power_fail(self.agent.name)
        self.boots += 1
        Path(self.agent.settings.boot_id_file).write_text(f"boot-{self.boots}")

    async def boot(self, *, attached: bool = True) -> None:
        self.hosts.fabric.boot(self.agent.name)
        # Sooner it would be taken for a second machine of the same identity.
        await asyncio.sleep(DUPLICATE_SECONDS)
        self.agent.start()
        if attached:
            await wait_for(lambda: self.hosts.attached(self.agent.host), timeout=WAIT_SECONDS)

    async def warnings(self) -> list[str]:
        return list((await self.hosts.status(self.agent.host)).inventory.warnings)

    async def power(self, instance: InstanceId) -> str:
        view = await self.agent.hypervisor.view(instance)
        return "ABSENT" if view is None else view.power_state


async def define(agent: FakeAgent, instance: InstanceId, *, epoch: int) -> None:
    """A copy that nobody has ordered."""
    await agent.hypervisor.define(
        DomainDescription(
            instance_id=instance,
            title=instance,
            epoch=Epoch(epoch),
            operation_id=OperationId(str(uuid.uuid4())),
            vcpus=1,
            memory_mib=64,
            disk=Path("/disk"),
            config_drive=Path("/config"),
            console=Path("/console"),
        )
    )


async def start(scheduler: Scheduler, host: HostId, instance: InstanceId, epoch: int) -> None:
    """A start order of whoever leads. Raises what the agent says."""
    term = await scheduler.term()
    leader = LeaderRef(cluster_id=term.leadership.cluster_id, epoch=term.leadership.epoch)
    key = StepKey(
        operation_id=str(uuid.uuid4()),
        step="guest_started",
        direction=StepKey.DIRECTION_DO,
        instance_id=instance,
        epoch=epoch,
        leader=leader,
    )
    await term.agents.run_step(host, agent_pb2.RunStepRequest(key=key, start_domain=agent_pb2.StartDomain()))


async def until_refused(
    reason: Reason, scheduler: Scheduler, host: HostId, instance: InstanceId, epoch: int, decision: str
) -> None:
    last: list[RemudaError] = []

    async def refused() -> bool:
        try:
            await start(scheduler, host, instance, epoch)
        except RemudaError as error:
            last[:] = [error]
            return error.reason is reason and error.metadata.get("decision") == decision
        pytest.fail("it was started")

    await wait_for(refused, timeout=WAIT_SECONDS, last_status=lambda: last)


async def until_started(scheduler: Scheduler, host: HostId, instance: InstanceId, epoch: int = 1) -> None:
    async def started() -> bool:
        try:
            await start(scheduler, host, instance, epoch)
        except RemudaError as error:
            if error.reason is not Reason.QUARANTINED:
                raise
            return False
        return True

    await wait_for(started, timeout=WAIT_SECONDS)


async def settle_record(
    hosts: Hosts, scheduler: Scheduler, instance: InstanceId, host: HostId, epoch: int
) -> None:
    """The record as a move leaves it, known to the leader."""
    status = await hosts.instance_status(instance)
    status.host_id, status.epoch = host, epoch
    revision = await hosts.etcd.put(hosts.keys.instance_status(instance), status.SerializeToString())
    await (await scheduler.term()).store.statuses.wait_revision(revision, WAIT_SECONDS)


class Verdicts:
    """What a peer that beats its heart hears."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._seq = 0
        self.heard: list[list[tuple[str, int, int]]] = []

    async def beat(self) -> None:
        """Until its ack; verdicts come after the ack of the beat before at the latest."""
        self._seq += 1
        answer = await self._peer.beat(self._seq)
        while not answer.HasField("ack"):
            said = answer.verdicts.verdicts
            self.heard.append([(one.instance_id, one.epoch, one.decision) for one in said])
            answer = await self._peer.read()

    async def until(self, count: int) -> None:
        async def reached() -> bool:
            await self.beat()
            return len(self.heard) >= count

        await wait_for(reached, timeout=WAIT_SECONDS, last_status=lambda: self.heard)


async def test_every_copy_gets_its_verdict_and_only_changes_are_said_again(hosts: Hosts) -> None:
    scheduler = await hosts.scheduler()
    host, token = await hosts.enrol("alpha")
    unknown, mine = str(uuid.uuid4()), InstanceId(str(uuid.uuid4()))
    status = InstanceStatus(state=Instance.STATE_STOPPED, host_id=host, epoch=2)
    await hosts.etcd.put(hosts.keys.instance_status(mine), status.SerializeToString())
    await settle_record(hosts, scheduler, mine, host, 2)
    copies = [
        ObservedInstance(instance_id=one, epoch=epoch, power_state=Instance.POWER_STATE_SHUTOFF)
        for one, epoch in ((mine, 2), (unknown, 1))
    ]
    async with hosts.peer(scheduler, host) as peer:
        shown = Observations(sequence=1, complete=True, instances=copies)
        await peer.hello("alpha", token=token, observations=shown)
        verdicts = Verdicts(peer)
        await verdicts.until(1)
        assert sorted(verdicts.heard[0]) == sorted([(mine, 2, KEEP), (unknown, 1, HOLD)])
        before = await hosts.revision()
        for _ in range(20):
            await verdicts.beat()
        assert len(verdicts.heard) == 1, "a steady cluster repeats nothing"
        assert await hosts.revision() == before, "and writes nothing"
        # Held by an operation it is still the record's copy; moved on, it is not any more.
        claim = Claim(operation_id=str(uuid.uuid4()), action="LiveMigrateInstance")
        await hosts.etcd.put(hosts.keys.claim(mine), claim.SerializeToString())
        await settle_record(hosts, scheduler, mine, HostId(str(uuid.uuid4())), 3)
        await verdicts.until(2)
        assert verdicts.heard[1:] == [[(mine, 2, HOLD)]]


async def test_a_booted_host_starts_its_copy_when_the_leader_has_confirmed_it(hosts: Hosts) -> None:
    first = await hosts.scheduler()
    alpha = await Machine.of(hosts, "alpha")
    instance = await hosts.guest(alpha.agent, Instance.STATE_RUNNING)
    await until_started(first, alpha.agent.host, instance)
    await alpha.power_fail()
    await first.resign()
    await alpha.boot(attached=False)
    # No leader: nothing runs.
    reached = await wait_for(lambda: alpha.agent.hypervisor.view(instance), timeout=WAIT_SECONDS)
    assert reached.power_state == "SHUTOFF"
    first.run()
    await first.term()
    await hosts.until_observed(instance, Instance.POWER_STATE_SHUTOFF)
    await until_started(first, alpha.agent.host, instance)
    assert await alpha.power(instance) == "RUNNING"
    # Whoever was warned of it is told that it is over.
    await wait_for(lambda: _none(alpha), timeout=WAIT_SECONDS)


async def test_a_copy_on_hold_stays_refused_and_is_told_of(hosts: Hosts) -> None:
    scheduler = await hosts.scheduler()
    alpha = await Machine.of(hosts, "alpha")
    unknown = InstanceId(str(uuid.uuid4()))
    await define(alpha.agent, unknown, epoch=1)
    await alpha.power_fail()
    await alpha.boot()
    await until_refused(Reason.QUARANTINED, scheduler, alpha.agent.host, unknown, 1, "HOLD")

    async def told() -> bool:
        return await alpha.warnings() == ["1 copy waits for confirmation since the host was booted"]

    await wait_for(told, timeout=WAIT_SECONDS)
    before = await hosts.revision()
    session = (await scheduler.term()).registry.session(alpha.agent.host)
    assert session is not None
    beats = session.last_seq
    await wait_for(lambda: session.last_seq > beats + 10, timeout=WAIT_SECONDS)
    assert await hosts.revision() == before


async def test_a_stale_copy_is_refused_for_good_and_its_instance_is_told_once(hosts: Hosts) -> None:
    first = await hosts.scheduler()
    alpha, beta = await Machine.of(hosts, "alpha"), await Machine.of(hosts, "beta")
    instance = await hosts.guest(beta.agent, Instance.STATE_RUNNING, epoch=2)
    await hosts.until_observed(instance, Instance.POWER_STATE_RUNNING)
    await define(alpha.agent, instance, epoch=1)
    await alpha.power_fail()
    await alpha.boot()
    await until_refused(Reason.STALE_EPOCH, first, alpha.agent.host, instance, 1, "RELEASE")
    assert await hosts.events(instance) == [STALE_COPY]
    # Another leader judges anew, and says nothing twice.
    second = await hosts.scheduler(run=False)
    alpha.agent.settings = alpha.agent.settings.model_copy(update={"schedulers": (second.endpoint,)})
    await alpha.agent.end()
    await first.resign()
    second.run()
    await second.term()
    alpha.agent.start()
    await wait_for(lambda: hosts.attached(alpha.agent.host), timeout=WAIT_SECONDS)
    await until_refused(Reason.STALE_EPOCH, second, alpha.agent.host, instance, 1, "RELEASE")
    assert await hosts.events(instance) == [STALE_COPY]
    assert await alpha.power(instance) == "SHUTOFF"
    assert await beta.power(instance) == "RUNNING"


async def test_an_older_copy_is_on_hold_while_an_operation_works_or_the_newer_is_unseen(hosts: Hosts) -> None:
    scheduler = await hosts.scheduler()
    alpha, beta = await Machine.of(hosts, "alpha"), await Machine.of(hosts, "beta")
    operation = str(uuid.uuid4())
    instance = await hosts.guest(beta.agent, Instance.STATE_RUNNING, epoch=2, held_by=operation)
    await define(alpha.agent, instance, epoch=1)
    await alpha.power_fail()
    await alpha.boot()
    await until_refused(Reason.QUARANTINED, scheduler, alpha.agent.host, instance, 1, "HOLD")
    # The operation is over, and the newer copy has vanished.
    await beta.agent.hypervisor.destroy(instance)
    await beta.agent.hypervisor.undefine(instance)
    session = (await scheduler.term()).registry.session(beta.agent.host)
    assert session is not None
    await wait_for(lambda: instance not in session.observed, timeout=WAIT_SECONDS)
    await hosts.etcd.delete(hosts.keys.claim(instance))
    await until_refused(Reason.QUARANTINED, scheduler, alpha.agent.host, instance, 1, "HOLD")
    # It is found again: now there is no doubt left.
    await define(beta.agent, instance, epoch=2)
    await until_refused(Reason.STALE_EPOCH, scheduler, alpha.agent.host, instance, 1, "RELEASE")


async def test_an_agent_that_obeys_a_newer_leader_takes_no_verdict_of_an_older(hosts: Hosts) -> None:
    scheduler = await hosts.scheduler()
    alpha = await Machine.of(hosts, "alpha")
    instance = await hosts.guest(alpha.agent, Instance.STATE_RUNNING)
    await alpha.power_fail()
    term = await scheduler.term()
    newer = LeaderRef(cluster_id=term.leadership.cluster_id, epoch=term.leadership.epoch + 1000)
    LeaderGuard(alpha.agent.settings.state_dir).acknowledge(newer)
    await alpha.boot()
    # It leaves as soon as it hears a verdict, and comes again: perhaps the newer one leads by then.
    sessions = {id(session): session for session in [term.registry.session(alpha.agent.host)]}

    def attached_often() -> bool:
        session = term.registry.session(alpha.agent.host)
        sessions[id(session)] = session
        return len(sessions) >= 3

    await wait_for(attached_often, timeout=WAIT_SECONDS)
    assert await alpha.warnings() == ["1 copy waits for confirmation since the host was booted"]
    assert await alpha.power(instance) == "SHUTOFF"


async def test_a_verdict_that_cannot_be_kept_lifts_nothing_and_is_asked_for_again(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = await hosts.scheduler()
    alpha = await Machine.of(hosts, "alpha")
    instance = await hosts.guest(alpha.agent, Instance.STATE_RUNNING)
    await alpha.power_fail()
    write, full, failures = file.write, True, 0

    def broken(path: Path, standing: Standing) -> None:
        nonlocal failures
        if full and standing.confirmed:
            failures += 1
            raise OSError(errno.ENOSPC, "no space left on device")
        write(path, standing)

    monkeypatch.setattr(file, "write", broken)
    await alpha.boot()
    await wait_for(lambda: failures >= 2, timeout=WAIT_SECONDS)
    assert await alpha.warnings() == ["1 copy waits for confirmation since the host was booted"]
    full = False
    await until_started(scheduler, alpha.agent.host, instance)


async def _none(machine: Machine) -> bool:
    return not await machine.warnings()
