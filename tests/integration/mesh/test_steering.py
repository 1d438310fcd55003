"""A migration is steered from the client to the source's agent, over processes that are killed."""

import asyncio
from typing import TYPE_CHECKING

import grpc
from remuda.compute.v1 import migration_pb2 as pb
from remuda.compute.v1.moving_pb2 import CheckMigrationRequest, MigrationCheck
from remuda_core.testing.waiting import wait_for

from tests.integration.mesh.conftest import Cluster, Instance, Watched, metadata_of
from tests.integration.mesh.test_metrics import key, scrape_with

if TYPE_CHECKING:
    ControlCall = grpc.aio.StreamStreamCall[pb.ControlMigrationRequest, pb.ControlMigrationResponse]

RUNNING = Instance.STATE_RUNNING
SLOW_MIB_S = 1
"""A guest of 64 MiB takes a minute: longer than an election, and than what is asked meanwhile."""
FAST_MIB_S = 8
"""Slow enough for the host to see in the job's own figures that it is in force."""
SECONDS = 60.0


class Steering:
    """One client's stream."""

    def __init__(self, call: "ControlCall") -> None:
        self.call = call

    @classmethod
    async def of(cls, cluster: Cluster, watched: Watched) -> "Steering":
        name = metadata_of(watched.seen[-1]).migration
        call = cluster.alice.migrations.ControlMigration()
        await call.write(pb.ControlMigrationRequest(attach=pb.AttachToMigration(name=name)))
        return cls(call)

    async def ask(self, command_id: str, **command: object) -> pb.CommandResult:
        await self.call.write(pb.ControlMigrationRequest(command_id=command_id, **command))  # type: ignore[arg-type]
        return await self.answer(command_id)

    async def answer(self, command_id: str) -> pb.CommandResult:
        async with asyncio.timeout(SECONDS):
            while True:
                event = await self.call.read()
                assert isinstance(event, pb.ControlMigrationResponse), "the stream ended"
                if event.HasField("result") and event.result.command_id == command_id:
                    return event.result

    async def ended(self) -> pb.Migration:
        async with asyncio.timeout(SECONDS):
            while True:
                event = await self.call.read()
                assert isinstance(event, pb.ControlMigrationResponse), "the stream ended"
                if event.HasField("ended"):
                    assert await self.call.read() is grpc.aio.EOF
                    return event.ended


async def slow_move(cluster: Cluster) -> tuple[str, Watched]:
    made = await cluster.launch("web", host="alpha", pool="shared")
    watched = cluster.watch(await cluster.migrate(made.name, "beta", bandwidth_mib_s=SLOW_MIB_S))
    await watched.until(2)
    return made.name, watched


async def test_a_slow_migration_is_let_run_and_the_record_says_by_which_command(cluster: Cluster) -> None:
    name, watched = await slow_move(cluster)
    steering = await Steering.of(cluster, watched)
    dial = pb.SetBandwidth(mib_per_second=FAST_MIB_S)
    result = await steering.ask("faster", set_bandwidth=dial)
    assert result.effect == pb.CommandResult.EFFECT_APPLIED, result
    assert result.phase == pb.MigrationProgress.PHASE_MEMORY
    assert result.observed
    record = await steering.ended()
    assert record.state == pb.Migration.STATE_DONE
    (told,) = [one for one in record.timeline if one.type == "COMMAND_APPLIED"]
    assert cluster.host_name(told.host) == "alpha"
    assert "set_bandwidth" in told.detail
    assert (await cluster.get(name)).host == cluster.host("beta")


async def test_the_next_leader_takes_commands_for_the_job_of_the_first(cluster: Cluster) -> None:
    name, watched = await slow_move(cluster)
    steering = await Steering.of(cluster, watched)
    first = await cluster.leader()
    cluster.mesh.processes[first].kill()
    # Asked while nobody leads: it waits, on the client's one stream.
    result = await steering.ask("faster", set_bandwidth=pb.SetBandwidth(mib_per_second=FAST_MIB_S))
    assert result.effect == pb.CommandResult.EFFECT_APPLIED, result
    assert (await steering.ended()).state == pb.Migration.STATE_DONE
    assert (await cluster.get(name)).host == cluster.host("beta")


async def test_a_guest_is_paused_so_that_its_migration_ends(cluster: Cluster) -> None:
    name, watched = await slow_move(cluster)
    steering = await Steering.of(cluster, watched)
    refused = await steering.ask("early", switch_to_post_copy=pb.SwitchToPostCopy())
    assert refused.effect == pb.CommandResult.EFFECT_REFUSED, "it was not allowed at the start"
    result = await steering.ask("finish", pause_and_finish=pb.PauseAndFinish())
    assert result.effect == pb.CommandResult.EFFECT_APPLIED, result
    record = await steering.ended()
    (told,) = [one for one in record.timeline if one.type == "COMMAND_APPLIED"]
    assert told.detail.startswith("pause_and_finish")
    moved = await cluster.get(name)
    assert (moved.state, moved.host) == (RUNNING, cluster.host("beta"))


async def test_a_cancel_on_the_stream_leaves_the_guest_where_it_was(cluster: Cluster) -> None:
    name, watched = await slow_move(cluster)
    steering = await Steering.of(cluster, watched)
    result = await steering.ask("stop", cancel=pb.GiveUp())
    assert result.effect == pb.CommandResult.EFFECT_APPLIED, result
    assert (await steering.ended()).state == pb.Migration.STATE_CANCELLED
    kept = await cluster.get(name)
    assert (kept.state, kept.host) == (RUNNING, cluster.host("alpha"))
    assert cluster.mesh.domains()["beta"] == set()


async def test_moves_beyond_the_limit_wait_for_their_turn_and_are_seen_to(cluster: Cluster) -> None:
    """Two may leave a host at a time, unless it is configured otherwise."""
    made = [await cluster.launch(f"web-{n}", host="alpha", pool="shared") for n in range(3)]
    watched = []
    for instance in made:
        started = await cluster.migrate(instance.name, "beta", bandwidth_mib_s=SLOW_MIB_S)
        watched.append(cluster.watch(started))
        if len(watched) <= 2:
            await watched[-1].until(1)

    def queued() -> bool:
        last = metadata_of(watched[2].seen[-1]) if watched[2].seen else None
        return last is not None and last.progress.queue.position == 1

    await wait_for(queued, timeout=SECONDS, last_status=lambda: watched[2].seen[-1:])
    seen = metadata_of(watched[2].seen[-1]).progress.queue
    assert (seen.limit, seen.allowed) == (f"outgoing of {cluster.host('alpha')}", 2)
    leader = await cluster.leader()
    waiting = key("remuda_migrations_waiting", limit=seen.limit)
    await scrape_with(cluster, leader, {waiting: 1})
    await cluster.cancel(watched[0].name)
    await watched[2].until(1)
    await scrape_with(cluster, leader, {waiting: None})
    for one in watched[1:]:
        await cluster.cancel(one.name)
    for one in watched:
        await one.end()


async def test_a_check_says_where_a_guest_could_go_and_touches_nothing(cluster: Cluster) -> None:
    made = await cluster.launch("web", host="alpha", pool="shared")
    checked = await cluster.admin.instances.CheckMigration(CheckMigrationRequest(name=made.name))
    verdicts = {cluster.host_name(one.host): one.verdict for one in checked.candidates}
    assert verdicts["beta"] in (MigrationCheck.VERDICT_PASS, MigrationCheck.VERDICT_WARN), checked
    assert verdicts["gamma"] == MigrationCheck.VERDICT_FAIL, "it does not mount the storage"
    kept = await cluster.get(made.name)
    assert (kept.host, kept.epoch, kept.state, kept.operation) == (made.host, made.epoch, RUNNING, "")
