"""Who is attached, and what they said last; in memory, by a clock of its own."""

import pytest
from remuda.compute.v1.host_pb2 import HostInventory
from remuda.scheduler.v1.registry_pb2 import Heartbeat, Hello, Observations, ObservedInstance
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId, InstanceId
from remuda_scheduler.hosts.registry import HostRegistry

HOST = HostId("h")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> HostRegistry:
    return HostRegistry(unreachable_after=10.0, duplicate_window=2.0, clock=clock)


def hello(boot: str = "b1", memory_mib: int = 1) -> Hello:
    return Hello(
        host_id=HOST,
        hostname="alpha",
        boot_id=boot,
        agent_endpoint=f"{boot}:1",
        inventory=HostInventory(memory_mib=memory_mib),
    )


def seen(*instances: str, sequence: int, complete: bool = True) -> Observations:
    return Observations(
        sequence=sequence,
        complete=complete,
        instances=[ObservedInstance(instance_id=instance) for instance in instances],
    )


def test_silence_counts_from_the_election_until_the_first_word(registry: HostRegistry, clock: Clock) -> None:
    clock.now += 4
    assert registry.silent_seconds(HOST) == 4
    session = registry.attach(hello())
    assert registry.silent_seconds(HOST) == 0
    clock.now += 3
    registry.heard(session, Heartbeat(seq=7, armed=True))
    assert (registry.silent_seconds(HOST), session.last_seq, session.armed) == (0, 7, True)


def test_a_second_boot_is_a_duplicate_only_while_the_first_one_lives(
    registry: HostRegistry, clock: Clock
) -> None:
    first = registry.attach(hello("b1"))
    clock.now += 1.9
    with pytest.raises(RemudaError) as refused:
        registry.attach(hello("b2"))
    assert refused.value.reason is Reason.DUPLICATE_HOST
    assert refused.value.metadata["boot_id"] == "b1"
    assert registry.session(HOST) is first
    clock.now += 0.2
    second = registry.attach(hello("b2"))
    assert (first.open, second.open) == (False, True)


def test_a_boot_whose_stream_has_ended_is_followed_at_once(registry: HostRegistry) -> None:
    registry.detach(registry.attach(hello("b1")))
    assert registry.attach(hello("b2")).open


def test_the_stream_that_was_replaced_does_not_detach_the_host(registry: HostRegistry) -> None:
    first = registry.attach(hello())
    registry.attach(hello())
    registry.detach(first)
    assert registry.attached(HOST)


def test_a_host_that_went_away_keeps_its_last_inventory(registry: HostRegistry) -> None:
    registry.detach(registry.attach(hello(memory_mib=5)))
    session = registry.session(HOST)
    assert session is not None
    assert session.inventory.memory_mib == 5
    assert not registry.attached(HOST)


def test_a_forgotten_host_is_not_attached_and_its_stream_is_told(registry: HostRegistry) -> None:
    session = registry.attach(hello())
    registry.forget(HOST)
    assert (session.open, registry.session(HOST)) == (False, None)
    registry.forget(HOST)


def test_older_observations_are_dropped(registry: HostRegistry) -> None:
    session = registry.attach(hello())
    assert session.absorb(seen("i", sequence=5)) is not None
    assert session.absorb(seen(sequence=5)) is None
    assert session.absorb(seen(sequence=4)) is None
    assert set(session.observed) == {InstanceId("i")}


def test_a_complete_list_removes_what_it_does_not_name_and_a_partial_one_does_not(
    registry: HostRegistry,
) -> None:
    session = registry.attach(hello())
    session.absorb(seen("i", "j", sequence=1))
    session.absorb(seen("k", sequence=2, complete=False))
    assert set(session.observed) == {"i", "j", "k"}
    assert session.absorb(seen("k", sequence=3)) == [ObservedInstance(instance_id="k")]
    assert set(session.observed) == {"k"}
