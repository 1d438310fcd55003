"""Asking hosts in memory: what is asked, in which bounds, what is used again, and that nothing is left."""

import asyncio
import time
import uuid
from dataclasses import replace

import pytest
from remuda.agent.v1 import probe_pb2 as pb
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId, InstanceId
from remuda_core.testing.hosts import RUNNING, FakeDomain, FakeHosts, Silence
from remuda_core.testing.premise import PremiseLost, set_up_again
from remuda_core.testing.probes import FakeProbes, FakeSight
from remuda_scheduler.preflight import prober as bounds
from remuda_scheduler.preflight.facts import HostSide, NoAnswer, Probes, Reach, SharedFile
from remuda_scheduler.preflight.prober import Prober
from remuda_scheduler.preflight.reuse import Recent

from tests.unit.preflight.conftest import a_side

INSTANCE = InstanceId(str(uuid.uuid4()))


class Pair:
    """Hosts alpha and beta, with one prober."""

    def __init__(self) -> None:
        self.source = self._side("alpha", "192.0.2.1")
        self.target = self._side("beta", "192.0.2.2")
        self.a, self.b = self.source.placement.id, self.target.placement.id
        self.hosts = FakeHosts(self.a, self.b)
        self.hosts.hosts[self.a].domains[INSTANCE] = FakeDomain(epoch=1, operation="", power=RUNNING)
        self.agents = FakeProbes(self.hosts)
        for side, storage in ((self.source, "a"), (self.target, "b")):
            self.agents.sights[side.placement.id] = FakeSight(
                name=side.name,
                address=side.migration_address,
                storage={"local": storage, "shared": "nfs"},
            )
        self.now = 0.0
        self.prober = Prober(self.agents, recent=Recent(30.0, clock=lambda: self.now))

    def _side(self, name: str, address: str) -> HostSide:
        side = a_side(name, address)
        host = HostId(str(uuid.uuid5(uuid.NAMESPACE_DNS, name)))
        return replace(side, placement=replace(side.placement, id=host))

    async def ask(self, *, pool: str = "shared", fresh: bool = False) -> Probes:
        return await self.prober.pair(
            source=self.source,
            target=self.target,
            guest=await self.prober.guest(self.source, INSTANCE),
            dirty_rate=None,
            assessment=pb.AssessGuestRequest(pool=pool, physical_networks=["physnet"]),
            try_storage=pool == "shared",
            fresh=fresh,
        )

    def asked(self) -> list[str]:
        """Since the last time."""
        found = sorted(what for _, what in self.agents.log)
        self.agents.log.clear()
        return found

    def nothing_is_left(self) -> None:
        assert self.agents.files == {}
        assert self.agents.listeners == {}


@pytest.fixture
def pair() -> Pair:
    return Pair()


ALWAYS = ["assess_guest", "describe_guest", "read_nonce", "remove_nonce", "write_nonce"]
"""STORAGE, and what a guest is made of now."""
ONCE = ["assess_guest", "connect", "listen", "open_libvirt", "resolve_host", "resolve_host"]


async def test_both_hosts_are_asked_everything_and_nothing_is_left(pair: Pair) -> None:
    probes = await pair.ask()
    assert pair.asked() == sorted(ALWAYS + ONCE)
    assert probes.reach.found == Reach(address="192.0.2.2", port=49152, heard=True)
    assert probes.shared_file is not None
    assert probes.shared_file.found == SharedFile(pool_uid="nfs", read=True)
    assert isinstance(probes.libvirt.found, pb.OpenLibvirtResponse)
    assert probes.libvirt.found.hostname == "beta"
    pair.nothing_is_left()


async def test_what_held_is_used_again_for_30_s_but_storage_never_is(pair: Pair) -> None:
    first = await pair.ask()
    pair.asked()
    pair.now = 29.9
    again = await pair.ask()
    assert pair.asked() == ALWAYS
    assert again.reach is first.reach
    assert again.target is not first.target, "it also says what is free in the pool"
    pair.now = 30.0
    await pair.ask()
    assert pair.asked() == sorted(ALWAYS + ONCE)


async def test_what_did_not_hold_is_asked_again_at_once(pair: Pair) -> None:
    beta = pair.agents.sights[pair.b]
    beta.libvirt_closed = beta.ports_blocked = True
    pair.agents.sights[pair.a].hosts_file["beta"] = []
    await pair.ask()
    beta.libvirt_closed = beta.ports_blocked = False
    pair.agents.sights[pair.a].hosts_file.clear()
    pair.asked()
    probes = await pair.ask()
    # Only the way back and the name that did resolve are known.
    assert pair.asked() == sorted([*ALWAYS, "connect", "listen", "open_libvirt", "resolve_host"])
    assert probes.reach.found == Reach(address="192.0.2.2", port=49152, heard=True)


async def test_what_was_seen_not_to_hold_is_no_longer_known_to_hold(pair: Pair) -> None:
    """An operator checks and sees a failure: the move a second later must not pass on what held before."""
    await pair.ask()
    beta = pair.agents.sights[pair.b]
    beta.libvirt_closed = True
    await pair.ask(fresh=True)
    probes = await pair.ask()
    assert isinstance(probes.libvirt.found, pb.OpenLibvirtResponse)
    assert "refused" in probes.libvirt.found.error


async def test_a_pool_that_is_full_is_an_answer(pair: Pair) -> None:
    async def full(*_: object) -> pb.WriteNonceResponse:
        raise RemudaError(Reason.DISK_FULL, "pool shared: no space left on device")

    setattr(pair.agents, "write_nonce", full)  # noqa: B010 - mypy refuses to assign to a method
    probes = await pair.ask()
    assert probes.shared_file is not None
    assert probes.shared_file.found == SharedFile(full="pool shared: no space left on device")
    assert "remove_nonce" in pair.asked(), "what was written of it is taken away"


async def test_who_wants_to_know_it_now_is_told_nothing_old(pair: Pair) -> None:
    await pair.ask()
    pair.asked()
    await pair.ask(fresh=True)
    assert pair.asked() == sorted(ALWAYS + ONCE)


async def test_pools_that_do_not_claim_to_be_the_same_are_not_written_to(pair: Pair) -> None:
    probes = await pair.ask(pool="local")
    assert probes.shared_file is None
    assert "write_nonce" not in pair.asked()


async def test_a_file_that_the_other_side_does_not_see_is_said_so(pair: Pair) -> None:
    pair.agents.sights[pair.b].storage["shared"] = "a copy of it"
    probes = await pair.ask()
    assert probes.shared_file is not None
    assert isinstance(probes.shared_file.found, SharedFile)
    assert not probes.shared_file.found.read
    pair.nothing_is_left()


async def test_the_silence_of_a_host_stands_in_its_rows_with_its_name(pair: Pair) -> None:
    pair.hosts.hosts[pair.b].fall_silent()
    probes = await pair.ask()
    silent = (probes.target, probes.source_by_target, probes.reach, probes.shared_file)
    for probe in silent:
        assert probe is not None
        assert isinstance(probe.found, NoAnswer)
        assert probe.found.words == "HOST_UNREACHABLE: no answer from beta"
    assert not isinstance(probes.target_by_source.found, NoAnswer), "the source's own answers are there"
    pair.nothing_is_left()


async def test_what_needs_the_guest_is_not_asked_when_the_source_is_silent(pair: Pair) -> None:
    pair.hosts.hosts[pair.a].fall_silent()
    probes = await pair.ask()
    assert isinstance(probes.target.found, NoAnswer)
    assert probes.target.found.words.startswith("not asked, because the guest is not known: HOST_UNREACHABLE")
    assert "assess_guest" not in pair.asked()
    pair.nothing_is_left()


async def test_an_agent_without_the_service_is_quoted(pair: Pair) -> None:
    pair.agents.sights[pair.b].refusal = RemudaError(Reason.UNIMPLEMENTED, "Method not found!")
    probes = await pair.ask()
    assert probes.target.found == NoAnswer(words="UNIMPLEMENTED: Method not found!")


@set_up_again
async def test_hosts_that_hang_are_waited_for_all_at_once_and_within_a_bound(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("ANSWER_SECONDS", 0.2), ("CONNECT_SECONDS", 0), ("LOOK_FOR_FILE_SECONDS", 0.1)):
        monkeypatch.setattr(bounds, name, seconds)
    pair.agents.sights[pair.b].hanging = {"assess_guest", "resolve_host", "listen", "write_nonce"}
    pair.agents.sights[pair.a].hanging = {"open_libvirt", "read_nonce"}
    began = time.monotonic()
    probes = await pair.ask()
    if (took := time.monotonic() - began) >= 1.5:
        raise PremiseLost(f"it took {took:.1f} s, if only for want of processors")
    for probe in (probes.target, probes.source_by_target, probes.reach, probes.libvirt, probes.shared_file):
        assert probe is not None
        assert isinstance(probe.found, NoAnswer)
    pair.nothing_is_left()


async def test_a_file_whose_writing_was_not_answered_is_taken_away_all_the_same(pair: Pair) -> None:
    write_nonce = pair.agents.write_nonce

    async def unheard(host: HostId, request: pb.WriteNonceRequest, seconds: float) -> pb.WriteNonceResponse:
        await write_nonce(host, request, seconds)
        raise RemudaError(Reason.HOST_UNREACHABLE, "the answer was lost")

    setattr(pair.agents, "write_nonce", unheard)  # noqa: B010 - mypy refuses to assign to a method
    probes = await pair.ask()
    assert probes.shared_file is not None
    assert isinstance(probes.shared_file.found, NoAnswer)
    pair.nothing_is_left()


async def test_who_stops_waiting_leaves_no_file_and_no_listener(pair: Pair) -> None:
    reading = asyncio.Event()
    read_nonce = pair.agents.read_nonce

    async def hang(*arguments: object) -> pb.ReadNonceResponse:
        reading.set()
        await asyncio.Event().wait()
        return await read_nonce(*arguments)  # type: ignore[arg-type]

    setattr(pair.agents, "read_nonce", hang)  # noqa: B010 - mypy refuses to assign to a method
    asking = asyncio.create_task(pair.ask())
    await asyncio.wait_for(reading.wait(), 5)
    assert pair.agents.files
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await pair.prober.close()
    pair.nothing_is_left()


async def test_a_file_that_cannot_be_taken_away_is_no_answer_about_storage(pair: Pair) -> None:
    """The pair is judged by what was seen; the agent sweeps the file."""
    read_nonce = pair.agents.read_nonce

    async def then_silent(host: HostId, request: pb.ReadNonceRequest, seconds: float) -> pb.ReadNonceResponse:
        found = await read_nonce(host, request, seconds)
        pair.hosts.hosts[pair.b].fall_silent(Silence.ANSWER_LOST)
        return found

    setattr(pair.agents, "read_nonce", then_silent)  # noqa: B010 - mypy refuses to assign to a method
    probes = await pair.ask()
    assert probes.shared_file is not None
    assert probes.shared_file.found == SharedFile(pool_uid="nfs", read=True)


async def test_a_listener_that_says_no_address_is_looked_for_at_the_registered_one(pair: Pair) -> None:
    pair.agents.sights[pair.b].address = "0.0.0.0"
    tried: list[str] = []
    connect = pair.agents.connect

    async def note(host: HostId, request: pb.ConnectRequest, seconds: float) -> pb.ConnectResponse:
        tried.append(request.address)
        request.address = "0.0.0.0"
        return await connect(host, request, seconds)

    setattr(pair.agents, "connect", note)  # noqa: B010 - mypy refuses to assign to a method
    await pair.ask()
    assert tried == ["192.0.2.2"]


async def test_the_dirty_rate_is_measured_at_the_source(pair: Pair) -> None:
    pair.agents.measured_bytes_per_second = 123
    probe = await pair.prober.dirty_rate(pair.source, INSTANCE)
    assert probe.found == 123
    assert pair.agents.log == [(pair.a, "measure_dirty_rate")]
