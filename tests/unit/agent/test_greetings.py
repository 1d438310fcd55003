"""A guest that arrives is asked at once whether it lives."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
import pytest_asyncio
from remuda_agent.greetings import EARLY_SECONDS, PATIENCE_SECONDS, Greetings
from remuda_agent.hypervisor import DomainView, EventKind, HypervisorEvent
from remuda_agent.hypervisor.fake import FakeFabric, FakeHypervisor
from remuda_agent.hypervisor.model import DomainJob, PowerState
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import Epoch, InstanceId, OperationId
from remuda_core.testing.waiting import wait_for

GUEST = InstanceId("7c8d5f3e-1111-4222-8333-944455556666")
VIEW = DomainView(
    instance_id=GUEST,
    epoch=Epoch(2),
    operation_id=OperationId("operation"),
    power_state=PowerState.RUNNING,
    reason="migrated",
    job=DomainJob.NONE,
    persistent=True,
    machine_type="pc-q35-7.2",
)


class Guest(FakeHypervisor):
    """Answers as told, the last answer again and again; None: not before it is let."""

    def __init__(self, fabric: FakeFabric) -> None:
        super().__init__(fabric, "a")
        self.answers: list[bool | RemudaError | None] = []
        self.asked: list[float] = []
        self.let = asyncio.Event()
        self.ours = True

    async def view(self, instance_id: InstanceId) -> DomainView | None:
        return VIEW if self.ours else None

    async def guest_agent_ping(self, instance_id: InstanceId, *, timeout: float) -> bool:
        assert instance_id == GUEST
        self.asked.append(timeout)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, RemudaError):
            raise answer
        if answer is None:
            await self.let.wait()
            return True
        return answer

    async def was_asked(self, times: int = 1) -> None:
        await wait_for(lambda: len(self.asked) >= times, timeout=60, last_status=lambda: self.asked)


@pytest.fixture
def guest() -> Guest:
    return Guest(FakeFabric())


@pytest_asyncio.fixture
async def greetings(guest: Guest) -> AsyncIterator[Greetings]:
    greetings = Greetings(guest)
    yield greetings
    await greetings.close()


def event(kind: EventKind, detail: str = "") -> HypervisorEvent:
    instance = None if kind is EventKind.RELIST else GUEST
    return HypervisorEvent(kind=kind, instance_id=instance, detail=detail, time=datetime.now(UTC))


ARRIVED = event(EventKind.RESUMED, "migrated")


async def test_it_is_asked_when_it_goes_on_and_not_when_the_answer_is_wanted(
    guest: Guest, greetings: Greetings
) -> None:
    guest.answers = [True]
    greetings.hear(ARRIVED)
    await guest.was_asked()
    assert await greetings.answered(GUEST)
    assert len(guest.asked) == 1


async def test_an_answer_that_is_on_its_way_is_waited_for(guest: Guest, greetings: Greetings) -> None:
    guest.answers = [None]
    greetings.hear(ARRIVED)
    await guest.was_asked()
    wanted = asyncio.create_task(greetings.answered(GUEST))
    await asyncio.sleep(0)
    assert not wanted.done()
    guest.let.set()
    assert await wanted
    assert len(guest.asked) == 1


async def test_a_guest_whose_channel_is_not_connected_yet_is_asked_again(
    guest: Guest, greetings: Greetings
) -> None:
    guest.answers = [False, False, True]
    greetings.hear(ARRIVED)
    await guest.was_asked(3)
    assert all(0 < timeout <= EARLY_SECONDS for timeout in guest.asked)
    assert await greetings.answered(GUEST)
    assert len(guest.asked) == 3


async def test_a_guest_without_an_agent_keeps_nobody_waiting(guest: Guest, greetings: Greetings) -> None:
    guest.answers = [False]
    greetings.hear(ARRIVED)
    await guest.was_asked(2)
    before = len(guest.asked)
    assert not await greetings.answered(GUEST)
    # Once after it was wanted, and not until the patience is over.
    assert len(guest.asked) <= before + 2


async def test_an_agent_that_hangs_is_left_alone_until_its_answer_is_wanted(
    guest: Guest, greetings: Greetings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every question hides the guest from the leader for as long as it takes.
    monkeypatch.setattr("remuda_agent.greetings.EARLY_SECONDS", 0.0)
    guest.answers = [False, True]
    greetings.hear(ARRIVED)
    await guest.was_asked()
    for _ in range(100):
        await asyncio.sleep(0)
    assert guest.asked == [0.0]
    assert await greetings.answered(GUEST)
    assert len(guest.asked) == 2


async def test_nobody_asks_for_ever(
    guest: Guest, greetings: Greetings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remuda_agent.greetings.PATIENCE_SECONDS", 0.1)
    guest.answers = [False]
    greetings.hear(ARRIVED)
    greeting = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.wait(greeting, timeout=10)
    asked = len(guest.asked)
    assert all(task.done() for task in greeting)
    # It may have got an agent since.
    guest.answers = [True]
    assert await greetings.answered(GUEST)
    assert len(guest.asked) == asked + 1


async def test_a_guest_that_could_not_be_asked_early_is_asked_later(
    guest: Guest, greetings: Greetings
) -> None:
    guest.answers = [RemudaError(Reason.HYPERVISOR_ERROR, "libvirtd is away"), True]
    greetings.hear(ARRIVED)
    await guest.was_asked()
    assert await greetings.answered(GUEST)
    assert len(guest.asked) == 2


async def test_without_an_event_it_is_asked_when_the_answer_is_wanted(
    guest: Guest, greetings: Greetings
) -> None:
    guest.answers = [True]
    assert await greetings.answered(GUEST)
    assert guest.asked == [PATIENCE_SECONDS]


@pytest.mark.parametrize(
    "later",
    [
        event(EventKind.SUSPENDED, "paused"),
        event(EventKind.STOPPED, "crashed"),
        event(EventKind.UNDEFINED),
        event(EventKind.RESUMED, "unpaused"),
        event(EventKind.RELIST),
    ],
    ids=lambda one: f"{one.kind} {one.detail}",
)
async def test_what_it_said_before_something_happened_to_it_does_not_count(
    guest: Guest, greetings: Greetings, later: HypervisorEvent
) -> None:
    guest.answers = [True, False]
    greetings.hear(ARRIVED)
    await guest.was_asked()
    greetings.hear(later)
    assert not await greetings.answered(GUEST)
    assert len(guest.asked) == 2


async def test_the_definition_and_the_end_of_the_job_come_after_it_and_change_nothing(
    guest: Guest, greetings: Greetings
) -> None:
    guest.answers = [True, False]
    greetings.hear(ARRIVED)
    greetings.hear(event(EventKind.DEFINED, "added"))
    greetings.hear(event(EventKind.JOB_ENDED))
    assert await greetings.answered(GUEST)
    assert len(guest.asked) == 1


async def test_an_answer_of_long_ago_is_asked_for_again(
    guest: Guest, greetings: Greetings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remuda_agent.greetings.FRESH_SECONDS", 0.0)
    guest.answers = [True, False]
    greetings.hear(ARRIVED)
    await guest.was_asked()
    assert not await greetings.answered(GUEST)


async def test_each_answer_is_given_once(guest: Guest, greetings: Greetings) -> None:
    guest.answers = [True, False]
    greetings.hear(ARRIVED)
    assert await greetings.answered(GUEST)
    assert not await greetings.answered(GUEST)


async def test_only_an_arrival_is_greeted_and_only_one_of_ours(guest: Guest, greetings: Greetings) -> None:
    guest.answers = [True]
    for one in (event(EventKind.RESUMED, "unpaused"), event(EventKind.STARTED, "booted")):
        greetings.hear(one)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    guest.ours = False
    greetings.hear(ARRIVED)
    await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()}, timeout=10)
    assert guest.asked == []


async def test_nothing_is_left_of_it_at_the_end(guest: Guest) -> None:
    greetings = Greetings(guest)
    guest.answers = [None]
    greetings.hear(ARRIVED)
    await guest.was_asked()
    await greetings.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}
