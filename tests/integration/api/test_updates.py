"""UpdateInstance: what its mask names and nothing else, and never an instance that is being deleted."""

from collections.abc import Awaitable, Callable

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from remuda.compute.v1 import instance_pb2
from remuda_api.admission.mutations import Mutations
from remuda_core.errors import Reason
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.model import KeyValue, TxnResult
from remuda_core.ids import InstanceId

from tests.integration.api.conftest import Client, Cluster, Launch, Pieces, refusal

Instance = instance_pb2.Instance


def update(
    name: str, *paths: str, labels: dict[str, str] | None = None, display_name: str = ""
) -> instance_pb2.UpdateInstanceRequest:
    return instance_pb2.UpdateInstanceRequest(
        instance=Instance(name=name, display_name=display_name, labels=labels or {}),
        update_mask=FieldMask(paths=paths),
    )


async def test_a_mask_of_labels_replaces_clears_or_changes_single_ones_and_needs_nothing_else(
    alice: Client, launch: Launch
) -> None:
    name = (await launch("web")).name

    async def labels_after(request: instance_pb2.UpdateInstanceRequest) -> dict[str, str]:
        found = await alice.instances.UpdateInstance(request)
        assert found.display_name == "web"
        return dict(found.labels)

    assert await labels_after(update(name, "labels", labels={"a": "1", "b": "2"})) == {"a": "1", "b": "2"}
    assert await labels_after(update(name, "labels.c", labels={"c": "3"})) == {"a": "1", "b": "2", "c": "3"}
    assert await labels_after(update(name, "labels.a", "labels.b", labels={"b": "4"})) == {"b": "4", "c": "3"}
    assert await labels_after(update(name, "labels")) == {}


async def test_a_mask_of_the_display_name_keeps_the_labels_and_needs_one(
    alice: Client, launch: Launch
) -> None:
    name = (await launch("web")).name
    await alice.instances.UpdateInstance(update(name, "labels", labels={"a": "1"}))
    renamed = await alice.instances.UpdateInstance(update(name, "display_name", display_name="db"))
    assert (renamed.display_name, dict(renamed.labels)) == ("db", {"a": "1"})
    for request in (update(name, "display_name"), update(name)):
        error = await refusal(alice.instances.UpdateInstance(request))
        assert error.violations[0].subject == "instance.display_name"


async def test_a_mask_that_names_something_else_is_refused(alice: Client, launch: Launch) -> None:
    name = (await launch("web")).name
    for paths in (("flavor",), ("labels.",), ("labelsx",), tuple(f"labels.k{n}" for n in range(200))):
        error = await refusal(alice.instances.UpdateInstance(update(name, *paths)))
        assert error.violations[0].subject == "update_mask"


async def test_labels_are_bounded_also_when_they_come_one_by_one(alice: Client, launch: Launch) -> None:
    name = (await launch("web")).name
    many = {f"k{number}": "x" for number in range(64)}
    await alice.instances.UpdateInstance(update(name, "labels", labels=many))
    error = await refusal(alice.instances.UpdateInstance(update(name, "labels.z", labels={"z": ""})))
    assert error.violations[0].subject == "instance.labels"


async def test_a_launch_needs_what_an_update_does_not(alice: Client, pieces: Pieces) -> None:
    for field in ("display_name", "flavor", "image"):
        request = pieces.request("web")
        request.instance.ClearField(field)
        error = await refusal(alice.instances.CreateInstance(request))
        assert error.reason is Reason.INVALID_ARGUMENT
        assert error.violations[0].subject == f"instance.{field}"


async def mark_deleting(cluster: Cluster, uid: str) -> None:
    """As the leader does before anything is removed."""
    status = await cluster.leader.status(InstanceId(uid))
    status.state = Instance.STATE_DELETING
    await cluster.etcd.put(cluster.keys.instance_status(InstanceId(uid)), status.SerializeToString())


async def test_an_instance_that_is_being_deleted_is_not_changed(
    cluster: Cluster, alice: Client, launch: Launch
) -> None:
    web = await launch("web")
    await mark_deleting(cluster, web.uid)
    error = await refusal(alice.instances.UpdateInstance(update(web.name, "display_name", display_name="db")))
    assert error.reason is Reason.STATE_FORBIDS_ACTION


async def test_a_rename_that_meets_a_delete_leaves_no_name_behind(
    cluster: Cluster, alice: Client, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = await launch("web")
    read = Mutations.read
    meet: list[Callable[[], Awaitable[None]]] = [lambda: mark_deleting(cluster, web.uid)]

    async def then_deleted(self: Mutations, *keys: str) -> list[KeyValue | None]:
        found = await read(self, *keys)
        while meet:
            await meet.pop()()
        return found

    monkeypatch.setattr(Mutations, "read", then_deleted)
    request = update(web.name, "display_name", display_name="db")
    assert (await refusal(alice.instances.UpdateInstance(request))).reason is Reason.STATE_FORBIDS_ACTION
    assert await cluster.keys_under("instance_names/") == {"instance_names/demo/web"}


async def test_what_a_client_sets_beyond_its_fields_is_not_stored(
    cluster: Cluster, alice: Client, pieces: Pieces
) -> None:
    request = pieces.request("web", status_message="x" * 500_000, operation="y" * 500_000)
    # Field 1000, which nobody knows.
    request.instance.MergeFromString(b"\xc2\x3e\x03abc")
    await alice.instances.CreateInstance(request)
    page = await cluster.etcd.range_prefix(cluster.keys.prefix)
    assert max(len(kv.value) for kv in page.kvs) < 2000
    assert not [kv.key for kv in page.kvs if b"abc" in kv.value]


async def test_texts_without_bounds_are_refused_field_by_field(alice: Client, pieces: Pieces) -> None:
    long = "x" * 2_000_000
    for changes, field in (
        ({"labels": {"a": long}}, 'instance.labels["a"]'),
        ({"labels": {"a b": ""}}, 'instance.labels["a b"]'),
        ({"labels": {f"k{number}": "x" * 200 for number in range(64)}}, "instance.labels"),
        ({"pool": long}, "instance.pool"),
        ({"user_data": b"x" * 65_537}, "instance.user_data"),
        ({"flavor": f"flavors/{long}"}, "instance.flavor"),
    ):
        error = await refusal(alice.instances.CreateInstance(pieces.request("web", **changes)))
        assert error.reason is Reason.INVALID_ARGUMENT
        assert error.violations[0].subject == field
    error = await refusal(
        alice.instances.ListInstances(
            instance_pb2.ListInstancesRequest(parent="projects/demo", filter="x" * 5000)
        )
    )
    assert error.violations[0].subject == "filter"


async def test_a_write_that_etcd_finds_too_large_is_told_and_not_repeated(
    alice: Client, pieces: Pieces, monkeypatch: pytest.MonkeyPatch
) -> None:
    txn, sent = Etcd.txn, 0

    async def inflated(self: Etcd, **arguments: object) -> TxnResult:
        nonlocal sent
        if success := arguments.get("success"):
            assert isinstance(success, list)
            puts = [op for op in success if op.WhichOneof("request") == "request_put"]
            if puts:
                sent += 1
                puts[0].request_put.value += bytes(2 << 20)
        return await txn(self, **arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Etcd, "txn", inflated)
    error = await refusal(alice.instances.CreateInstance(pieces.request("web")))
    assert error.reason is Reason.REQUEST_TOO_LARGE
    assert error.retry_after_seconds is None
    assert sent == 1
