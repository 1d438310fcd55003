"""ControlMigration and CheckMigration at the gateway."""

import uuid
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import grpc
import pytest
import pytest_asyncio
from google.protobuf.message import Message
from remuda.compute.v1 import migration_pb2 as pb
from remuda.compute.v1 import operation_pb2
from remuda.compute.v1.moving_pb2 import (
    CheckMigrationRequest,
    CheckMigrationResponse,
    LiveMigrateInstanceRequest,
    MigrationCandidate,
    MigrationCheck,
)
from remuda.store.v1.instance_pb2 import MigrationRecord
from remuda_core.errors import Reason, RemudaError, not_leader
from remuda_core.ids import InstanceId, MigrationId, OperationId
from remuda_core.rpc.status import from_rpc_error, from_status
from remuda_core.testing.waiting import wait_for

from tests.integration.api.conftest import Client, Cluster, Launch, refusal

if TYPE_CHECKING:
    ControlCall = grpc.aio.StreamStreamCall[pb.ControlMigrationRequest, pb.ControlMigrationResponse]

Metadata = operation_pb2.OperationMetadata
SECONDS = 10.0


class Move:
    """A migration that an operation of the test's own leader runs."""

    def __init__(self, cluster: Cluster, operation: str, name: str) -> None:
        self.cluster, self.operation, self.name = cluster, operation, name

    async def end(self, state: "Metadata.State.ValueType") -> None:
        record = await self.cluster.leader.record(self.operation)
        record.done = True
        record.metadata.state = state
        parts = self.name.split("/")
        key = self.cluster.keys.migration(InstanceId(parts[3]), MigrationId(parts[5]))
        kv = await self.cluster.etcd.get(key)
        assert kv is not None
        migration = MigrationRecord.FromString(kv.value)
        migration.migration.state = pb.Migration.STATE_DONE
        await self.cluster.etcd.put(key, migration.SerializeToString())
        await self.cluster.etcd.put(
            self.cluster.keys.operation(OperationId(record.id)), record.SerializeToString()
        )


@pytest_asyncio.fixture
async def move(cluster: Cluster, alice: Client, launch: Launch) -> Move:
    made = await launch("web")
    operation = await alice.instances.LiveMigrateInstance(LiveMigrateInstanceRequest(name=made.name))
    name = f"{made.name}/migrations/{uuid.uuid4()}"
    migration = pb.Migration(name=name, operation=operation.name, state=pb.Migration.STATE_RUNNING)
    key = cluster.keys.migration(InstanceId(made.uid), MigrationId(name.rpartition("/")[2]))
    await cluster.etcd.put(key, MigrationRecord(migration=migration).SerializeToString())
    return Move(cluster, operation.name, name)


async def attached(client: Client, move: Move, client_id: str = "") -> "ControlCall":
    call = client.migrations.ControlMigration()
    attach = pb.AttachToMigration(name=move.name, client_id=client_id)
    await call.write(pb.ControlMigrationRequest(attach=attach))
    return call


def bandwidth(command_id: str) -> pb.ControlMigrationRequest:
    return pb.ControlMigrationRequest(command_id=command_id, set_bandwidth=pb.SetBandwidth(mib_per_second=2))


async def read(call: "ControlCall") -> pb.ControlMigrationResponse:
    answer = await call.read()
    assert isinstance(answer, pb.ControlMigrationResponse), "the stream ended"
    return answer


async def result(call: "ControlCall") -> pb.CommandResult:
    while True:
        answer = await read(call)
        if answer.HasField("result"):
            return answer.result


async def test_an_owner_steers_and_sees_progress_and_the_end(
    cluster: Cluster, alice: Client, move: Move
) -> None:
    call = await attached(alice, move)
    await call.write(bandwidth("mine"))
    told = await result(call)
    assert (told.command_id, told.effect, told.observed) == (
        "mine",
        pb.CommandResult.EFFECT_APPLIED,
        "1.9 MiB/s seen",
    )
    (seen,) = cluster.leader.live.commands
    assert seen.set_bandwidth.mib_per_second == 2
    assert seen.command_id != "mine", "two clients may choose the same"
    progress = pb.MigrationProgress(phase=pb.MigrationProgress.PHASE_MEMORY, iteration=3)
    cluster.leader.live.control.put_nowait(pb.ControlMigrationResponse(progress=progress))
    assert (await read(call)).progress == progress
    await move.end(Metadata.STATE_DONE)
    ended = await read(call)
    assert ended.ended.name == move.name
    assert ended.ended.state == pb.Migration.STATE_DONE
    assert await call.read() is grpc.aio.EOF


async def test_a_command_without_an_answer_goes_to_the_next_leader_under_the_same_id(
    cluster: Cluster, alice: Client, move: Move
) -> None:
    live = cluster.leader.live
    live.deaf = True
    call = await attached(alice, move)
    await call.write(bandwidth("mine"))
    await wait_for(lambda: live.commands, timeout=SECONDS)
    live.deaf = False
    # The leader steps down; who takes over is asked again.
    live.control.put_nowait(not_leader(endpoint="127.0.0.1:1", epoch=2))
    assert (await result(call)).command_id == "mine"
    assert len({command.command_id for command in live.commands}) == 1
    assert len(live.commands) == 2


@pytest.mark.parametrize(("clients", "commands"), [(("", ""), 2), (("a", "b"), 2), (("a", "a"), 1)])
async def test_command_ids_are_a_clients_own(
    cluster: Cluster, alice: Client, move: Move, clients: tuple[str, str], commands: int
) -> None:
    for client in clients:
        call = await attached(alice, move, client)
        await call.write(bandwidth("1"))
        assert (await result(call)).command_id == "1"
        call.cancel()
    assert len({command.command_id for command in cluster.leader.live.commands}) == commands


async def test_commands_wait_while_nobody_leads(cluster: Cluster, alice: Client, move: Move) -> None:
    entry = await cluster.etcd.get(cluster.keys.leader)
    assert entry is not None
    await cluster.leader.resign()
    call = await attached(alice, move)
    await call.write(bandwidth("mine"))
    await cluster.etcd.put(cluster.keys.leader, entry.value)
    assert (await result(call)).effect == pb.CommandResult.EFFECT_APPLIED


async def test_a_cancel_needs_no_leader_and_is_answered_by_how_the_operation_ended(
    cluster: Cluster, alice: Client, move: Move
) -> None:
    await cluster.leader.resign()
    call = await attached(alice, move)
    await call.write(pb.ControlMigrationRequest(command_id="stop", cancel=pb.GiveUp()))
    key = cluster.keys.cancel(OperationId(move.operation.removeprefix("operations/")))

    async def asked() -> bool:
        return await cluster.etcd.get(key) is not None

    await wait_for(asked, timeout=SECONDS)
    await move.end(Metadata.STATE_CANCELLED)
    told = await result(call)
    assert (told.command_id, told.effect) == ("stop", pb.CommandResult.EFFECT_APPLIED)
    assert (await read(call)).HasField("ended")


async def test_a_cancel_that_comes_too_late_is_refused_with_the_reason(
    cluster: Cluster, alice: Client, move: Move
) -> None:
    call = await attached(alice, move)
    await call.write(pb.ControlMigrationRequest(command_id="stop", cancel=pb.GiveUp()))
    await move.end(Metadata.STATE_DONE)
    told = await result(call)
    assert told.effect == pb.CommandResult.EFFECT_REFUSED
    assert from_status(told.error).reason is Reason.COMMAND_REFUSED
    assert "too late" in told.observed


async def test_what_the_end_leaves_open_is_refused(cluster: Cluster, alice: Client, move: Move) -> None:
    cluster.leader.live.deaf = True
    call = await attached(alice, move)
    await call.write(bandwidth("mine"))
    await wait_for(lambda: cluster.leader.live.commands, timeout=SECONDS)
    await move.end(Metadata.STATE_DONE)
    told = await result(call)
    assert (told.command_id, told.effect) == ("mine", pb.CommandResult.EFFECT_REFUSED)


async def test_a_client_cannot_pile_up_commands(cluster: Cluster, alice: Client, move: Move) -> None:
    cluster.leader.live.deaf = True
    call = await attached(alice, move)
    for number in range(33):
        await call.write(bandwidth(str(number)))
    told = await result(call)
    assert (told.command_id, told.effect) == ("32", pb.CommandResult.EFFECT_REFUSED)
    assert "wait for their answers" in told.observed


async def test_the_first_message_attaches_and_no_later_one(
    cluster: Cluster, alice: Client, move: Move
) -> None:
    call = alice.migrations.ControlMigration()
    await call.write(bandwidth("mine"))
    assert await ending(call) is Reason.INVALID_ARGUMENT
    call = await attached(alice, move)
    await call.write(pb.ControlMigrationRequest(attach=pb.AttachToMigration(name=move.name)))
    assert await ending(call) is Reason.INVALID_ARGUMENT
    call = await attached(alice, move)
    await call.write(pb.ControlMigrationRequest(set_max_downtime=pb.SetMaxDowntime(max_downtime_ms=60001)))
    assert await ending(call) is Reason.INVALID_ARGUMENT


async def test_only_members_steer_and_only_what_runs(
    cluster: Cluster, alice: Client, bob: Client, move: Move
) -> None:
    assert await ending(await attached(bob, move)) is Reason.PERMISSION_DENIED
    gone = Move(cluster, move.operation, f"{move.name.rpartition('/')[0]}/{uuid.uuid4()}")
    assert await ending(await attached(alice, gone)) is Reason.MIGRATION_NOT_FOUND
    await move.end(Metadata.STATE_DONE)
    assert await ending(await attached(alice, move)) is Reason.COMMAND_REFUSED


async def ending(call: "ControlCall") -> Reason:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await _drain(call)
    return from_rpc_error(failure.value).reason


async def _drain(call: "ControlCall") -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


def table() -> CheckMigrationResponse:
    check = MigrationCheck(
        condition=MigrationCheck.CONDITION_STORAGE,
        verdict=MigrationCheck.VERDICT_FAIL,
        observed_source="pool shared, uid 1",
        observed_target="pool shared, uid 2",
        required="the same pool",
        fix="mount it on node-b",
        duration_ms=12,
    )
    candidate = MigrationCandidate(
        host="hosts/b", display_name="node-b", verdict=check.verdict, checks=[check], probed=True, score=1.5
    )
    return CheckMigrationResponse(source_host="hosts/a", candidates=[candidate])


async def test_an_admin_sees_the_whole_table_and_an_owner_what_came_of_each_condition(
    cluster: Cluster, alice: Client, bob: Client, admin: Client, launch: Launch
) -> None:
    made = await launch("web")
    cluster.leader.live.check = table()
    request = CheckMigrationRequest(name="projects/demo/instances/web", max_downtime_ms=10)
    assert await admin.instances.CheckMigration(request) == table()
    (asked,) = cluster.leader.live.checked
    assert (asked.instance_id, asked.request.max_downtime_ms) == (made.uid, 10)
    shown = await alice.instances.CheckMigration(request)
    (candidate,) = shown.candidates
    assert (candidate.host, candidate.display_name, candidate.score) == ("", "", 0)
    assert (candidate.verdict, candidate.probed) == (MigrationCheck.VERDICT_FAIL, True)
    (check,) = candidate.checks
    assert (check.condition, check.verdict) == (
        MigrationCheck.CONDITION_STORAGE,
        MigrationCheck.VERDICT_FAIL,
    )
    assert b"node-b" not in shown.SerializeToString()
    assert (await refusal(bob.instances.CheckMigration(request))).reason is Reason.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("call", "request_of"),
    [
        ("CheckMigration", lambda name: CheckMigrationRequest(name=name, target_host="hosts/b")),
        ("CheckMigration", lambda name: CheckMigrationRequest(name=name, probe_limit=64)),
        (
            "LiveMigrateInstance",
            lambda name: LiveMigrateInstanceRequest(
                name=name, priority=LiveMigrateInstanceRequest.PRIORITY_MAINTENANCE
            ),
        ),
    ],
)
async def test_what_concerns_hosts_and_maintenance_is_for_admins(
    alice: Client, launch: Launch, call: str, request_of: Callable[[str], Message]
) -> None:
    made = await launch("web")
    method: Callable[[Message], Awaitable[object]] = getattr(alice.instances, call)
    assert (await refusal(method(request_of(made.name)))).reason is Reason.PERMISSION_DENIED


async def test_an_owner_may_give_the_usual_priority_by_name(alice: Client, launch: Launch) -> None:
    made = await launch("web")
    request = LiveMigrateInstanceRequest(
        name=made.name, priority=LiveMigrateInstanceRequest.PRIORITY_USER, allow_post_copy=True
    )
    assert (await alice.instances.LiveMigrateInstance(request)).name


async def test_a_check_is_refused_while_nobody_leads(cluster: Cluster, alice: Client, launch: Launch) -> None:
    made = await launch("web")
    request = CheckMigrationRequest(name=made.name)
    cluster.leader.live.refusal = RemudaError(Reason.STATE_FORBIDS_ACTION, "it does not run")
    assert (await refusal(alice.instances.CheckMigration(request))).reason is Reason.STATE_FORBIDS_ACTION
    await cluster.leader.resign()
    assert (await refusal(alice.instances.CheckMigration(request))).reason is Reason.NO_LEADER
