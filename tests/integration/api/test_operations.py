"""google.longrunning.Operations and WatchOperation."""

import asyncio
import time
import uuid
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2 as lro
from google.protobuf.duration_pb2 import Duration
from remuda.compute.v1 import instance_pb2, operation_pb2
from remuda.store.v1 import operation_pb2 as records
from remuda_core.errors import Reason
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.model import TxnResult
from remuda_core.ids import OperationId
from remuda_core.rpc.status import from_rpc_error
from remuda_core.testing.waiting import wait_for

from tests.integration.api.conftest import Client, Cluster, Launch, Pieces, metadata_of, refusal

Request = operation_pb2.WatchOperationRequest


async def started(client: Client, pieces: Pieces, name: str = "web") -> lro.Operation:
    return await client.instances.CreateInstance(pieces.request(name))


async def test_an_operation_is_read_and_listed_by_members_of_its_project(
    cluster: Cluster, alice: Client, bob: Client, admin: Client, pieces: Pieces
) -> None:
    operation = await started(alice, pieces)
    request = lro.GetOperationRequest(name=operation.name)
    assert await alice.operations.GetOperation(request) == operation
    assert (await refusal(bob.operations.GetOperation(request))).reason is Reason.PERMISSION_DENIED
    listed = lro.ListOperationsRequest(filter="done = false AND action = CreateInstance")
    for client, names in ((alice, [operation.name]), (bob, []), (admin, [operation.name])):
        answer = await client.operations.ListOperations(listed)
        assert [one.name for one in answer.operations] == names
    listed.filter = "done = true"
    assert not (await alice.operations.ListOperations(listed)).operations
    listed.filter = "colour = red"
    assert (await refusal(alice.operations.ListOperations(listed))).reason is Reason.FILTER_INVALID
    missing = lro.GetOperationRequest(name=f"operations/{uuid.uuid4()}")
    assert (await refusal(alice.operations.GetOperation(missing))).reason is Reason.OPERATION_NOT_FOUND


async def test_cancel_is_durable_without_a_leader_and_asked_once(
    cluster: Cluster, alice: Client, bob: Client, pieces: Pieces
) -> None:
    operation = await started(alice, pieces)
    await cluster.leader.resign()
    request = lro.CancelOperationRequest(name=operation.name)
    assert (await refusal(bob.operations.CancelOperation(request))).reason is Reason.PERMISSION_DENIED
    call = alice.operations.CancelOperation(request)
    await call
    revision = dict(await call.trailing_metadata())["remuda-revision"]
    await alice.operations.CancelOperation(request)
    key = cluster.keys.cancel(OperationId(operation.name.removeprefix("operations/")))
    kv = await cluster.etcd.get(key)
    assert kv is not None
    assert kv.version == 1
    assert kv.mod_revision == int(str(revision))
    assert records.CancelRecord.FromString(kv.value).principal == "user/alice"
    await wait_for(lambda: cancels_seen(alice, operation.name), timeout=60)


async def cancels_seen(client: Client, name: str) -> bool:
    found = await client.operations.GetOperation(lro.GetOperationRequest(name=name))
    return metadata_of(found).cancel_requested


async def test_cancel_of_an_operation_that_is_over_leaves_no_flag(
    cluster: Cluster, alice: Client, pieces: Pieces
) -> None:
    operation = await started(alice, pieces)
    await cluster.leader.finish(operation.name)
    await alice.operations.CancelOperation(lro.CancelOperationRequest(name=operation.name))
    assert not await cluster.keys_under("cancels/")


async def test_only_an_operation_that_is_over_is_deleted(
    cluster: Cluster, alice: Client, pieces: Pieces
) -> None:
    operation = await started(alice, pieces)
    request = lro.DeleteOperationRequest(name=operation.name)
    assert (await refusal(alice.operations.DeleteOperation(request))).reason is Reason.STATE_FORBIDS_ACTION
    await cluster.leader.finish(operation.name)
    await alice.operations.DeleteOperation(request)
    assert not await cluster.keys_under("operations/")


async def test_wait_answers_when_it_ends_or_when_the_time_is_up(
    cluster: Cluster, alice: Client, pieces: Pieces
) -> None:
    operation = await started(alice, pieces)
    request = lro.WaitOperationRequest(name=operation.name, timeout=Duration(nanos=50_000_000))
    assert not (await alice.operations.WaitOperation(request)).done
    request.timeout.CopyFrom(Duration(seconds=20))
    waiting = asyncio.create_task(wait(alice, request))
    begun = time.monotonic()
    await cluster.leader.finish(operation.name)
    assert (await waiting).done
    assert time.monotonic() - begun < 15


async def wait(client: Client, request: lro.WaitOperationRequest) -> lro.Operation:
    return await client.operations.WaitOperation(request)


async def test_wait_answers_before_the_callers_deadline(
    cluster: Cluster, alice: Client, pieces: Pieces
) -> None:
    operation = await started(alice, pieces)
    request = lro.WaitOperationRequest(name=operation.name, timeout=Duration(seconds=60))
    assert not (await alice.operations.WaitOperation(request, timeout=0.6)).done


class Watcher:
    """Reads WatchOperation in the background."""

    def __init__(self, client: Client, name: str) -> None:
        self.seen: list[lro.Operation] = []
        self.error: grpc.aio.AioRpcError | None = None
        call = client.watching.WatchOperation(operation_pb2.WatchOperationRequest(name=name))
        self._task = asyncio.create_task(self._read(call))

    async def _read(
        self,
        call: "grpc.aio.UnaryStreamCall[Request, operation_pb2.WatchOperationResponse]",
    ) -> None:
        try:
            async for response in call:
                self.seen.append(response.operation)
        except grpc.aio.AioRpcError as error:
            self.error = error

    async def until(self, phase: str = "", percent: int = 0) -> operation_pb2.OperationMetadata:
        def reached() -> operation_pb2.OperationMetadata | None:
            for operation in self.seen:
                metadata = metadata_of(operation)
                if metadata.phase == phase and metadata.progress.percent >= percent:
                    return metadata
            return None

        return await wait_for(reached, timeout=60, last_status=lambda: self.seen[-1:] or self.error)

    async def end(self) -> lro.Operation:
        await asyncio.wait_for(self._task, 60)
        return self.seen[-1]


async def test_watch_shows_phases_live_progress_and_the_end(
    cluster: Cluster, alice: Client, pieces: Pieces
) -> None:
    operation = await started(alice, pieces)
    watcher = Watcher(alice, operation.name)
    await watcher.until(phase="")
    await cluster.leader.advance(operation.name, "disks_prepared")
    await watcher.until(phase="disks_prepared")
    await cluster.leader.live.progress.put(operation_pb2.Progress(percent=40, message="copying"))
    metadata = await watcher.until(phase="disks_prepared", percent=40)
    assert metadata.progress.message == "copying"
    await cluster.leader.finish(operation.name, response=instance_pb2.Instance(name="x"))
    assert (await watcher.end()).done
    assert watcher.error is None


async def test_watch_survives_a_change_of_the_leader_and_percent_never_falls(
    cluster: Cluster, alice: Client, pieces: Pieces
) -> None:
    live = cluster.leader.live
    operation = await started(alice, pieces)
    watcher = Watcher(alice, operation.name)
    await live.progress.put(operation_pb2.Progress(percent=60))
    await watcher.until(percent=60)
    record = await cluster.etcd.get(cluster.keys.leader)
    assert record is not None
    await cluster.leader.resign()
    await live.progress.put(None)  # the old leader ends its streams
    await cluster.etcd.put(cluster.keys.leader, record.value)
    await live.progress.put(operation_pb2.Progress(percent=10, message="new leader"))
    await wait_for(lambda: live.watched >= 2, timeout=60)
    await wait_for(lambda: metadata_of(watcher.seen[-1]).progress.message == "new leader", timeout=60)
    assert metadata_of(watcher.seen[-1]).progress.percent == 60
    await cluster.leader.finish(operation.name)
    assert (await watcher.end()).done


async def test_watch_works_without_a_leader(cluster: Cluster, alice: Client, pieces: Pieces) -> None:
    await cluster.leader.resign()
    operation = await started(alice, pieces)
    watcher = Watcher(alice, operation.name)
    await watcher.until(phase="")
    await cluster.leader.finish(operation.name)
    assert (await watcher.end()).done


async def test_watch_of_an_operation_that_is_over_ends_at_once_and_of_a_foreign_one_is_refused(
    cluster: Cluster, alice: Client, bob: Client, launch: Launch
) -> None:
    web = await launch("web")
    done = await alice.instances.StartInstance(instance_pb2.StartInstanceRequest(name=web.name))
    assert (await Watcher(alice, done.name).end()).done
    foreign = Watcher(bob, done.name)
    await wait_for(lambda: foreign.error, timeout=60)
    assert foreign.error is not None
    assert from_rpc_error(foreign.error).reason is Reason.PERMISSION_DENIED


async def test_watch_ends_when_the_operation_is_deleted(
    cluster: Cluster, alice: Client, pieces: Pieces
) -> None:
    operation = await started(alice, pieces)
    watcher = Watcher(alice, operation.name)
    await watcher.until(phase="")
    await cluster.etcd.delete(cluster.keys.operation(OperationId(operation.name.partition("/")[2])))
    await wait_for(lambda: watcher.error, timeout=60)
    assert watcher.error is not None
    assert from_rpc_error(watcher.error).reason is Reason.OPERATION_NOT_FOUND


async def test_a_delete_that_loses_a_race_looks_again_and_does_not_say_done(
    cluster: Cluster, alice: Client, pieces: Pieces, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation = await alice.instances.CreateInstance(pieces.request("web"))
    await cluster.leader.finish(operation.name)
    key = cluster.keys.operation(OperationId(operation.name.removeprefix("operations/")))
    kv = await cluster.etcd.get(key)
    assert kv is not None
    value, txn, raced = kv.value, Etcd.txn, 0

    async def touched_first(self: Etcd, **arguments: Any) -> TxnResult:
        nonlocal raced
        kinds = {op.WhichOneof("request") for op in arguments["success"]}
        if raced < 2 and "request_delete_range" in kinds:
            raced += 1
            await cluster.etcd.put(key, value)
        return await txn(self, **arguments)

    monkeypatch.setattr(Etcd, "txn", touched_first)
    await alice.operations.DeleteOperation(lro.DeleteOperationRequest(name=operation.name))
    assert raced == 2
    assert await cluster.etcd.get(key) is None


async def test_members_are_told_how_many_hosts_refused_and_admins_which(
    cluster: Cluster, alice: Client, admin: Client, pieces: Pieces
) -> None:
    operation = await alice.instances.CreateInstance(pieces.request("web"))
    record = await cluster.leader.record(operation.name)
    record.metadata.placement.CopyFrom(
        operation_pb2.PlacementExplanation(
            chosen_host="hosts/1",
            considered=7,
            hosts=[operation_pb2.HostVerdict(host="hosts/1", display_name="node-a", reason="3 vCPUs free")],
        )
    )
    key = cluster.keys.operation(OperationId(record.id))
    now = (("remuda-min-revision", str(await cluster.etcd.put(key, record.SerializeToString()))),)

    async def seen(client: Client) -> list[lro.Operation]:
        get = lro.GetOperationRequest(name=operation.name)
        wait = lro.WaitOperationRequest(name=operation.name, timeout=Duration(nanos=1_000_000))
        watch = client.watching.WatchOperation(
            operation_pb2.WatchOperationRequest(name=operation.name), metadata=now
        )
        first = await watch.read()
        assert isinstance(first, operation_pb2.WatchOperationResponse)
        watch.cancel()
        return [
            await client.operations.GetOperation(get, metadata=now),
            *(await client.operations.ListOperations(lro.ListOperationsRequest(), metadata=now)).operations,
            await client.operations.WaitOperation(wait, metadata=now),
            first.operation,
        ]

    for found in await seen(alice):
        assert metadata_of(found).placement == operation_pb2.PlacementExplanation(considered=7)
    for found in await seen(admin):
        assert metadata_of(found).placement == record.metadata.placement


async def test_the_leader_is_asked_for_progress_under_the_callers_request_id(
    cluster: Cluster, alice: Client, pieces: Pieces
) -> None:
    operation = await alice.instances.CreateInstance(pieces.request("web"))
    call = alice.watching.WatchOperation(
        operation_pb2.WatchOperationRequest(name=operation.name), metadata=(("x-request-id", "watch-1"),)
    )
    await call.read()
    await wait_for(lambda: cluster.leader.live.request_ids, timeout=60)
    call.cancel()
    assert cluster.leader.live.request_ids == ["watch-1"]
