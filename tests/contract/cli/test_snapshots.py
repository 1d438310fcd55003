"""instance snapshot, over real gRPC."""

import json
from typing import Any

import pytest
from remuda.compute.v1 import operation_pb2, snapshot_pb2
from remuda.image.v1 import image_pb2, source_pb2
from remuda_core.errors import Reason, RemudaError

from tests.contract.cli.conftest import PROJECT, WEB, operation

MIB, GIB = 1 << 20, 1 << 30
Metadata = operation_pb2.OperationMetadata
Request = snapshot_pb2.SnapshotInstanceRequest
COUNTS = source_pb2.TransferCounts(
    disk_bytes=40 * GIB,
    touched_bytes=1536 * MIB,
    read_bytes=1228 * MIB,
    deduplicated_bytes=900 * MIB,
    sent_bytes=320 * MIB,
    stored_bytes=312 * MIB,
)


def made() -> image_pb2.Image:
    image = image_pb2.Image(
        name=f"{PROJECT}/images/{WEB}", display_name="before", state=image_pb2.Image.STATE_ACTIVE
    )
    image.source.consistency = source_pb2.ImageSource.CONSISTENCY_FILESYSTEM
    image.source.counts.CopyFrom(COUNTS)
    return image


def ends_with_the_image(gateway: Any) -> None:
    under_way = operation(action="SnapshotInstance", phase="disk_uploaded", migration="")
    metadata = Metadata()
    under_way.metadata.Unpack(metadata)
    metadata.progress.percent = 80
    metadata.progress.snapshot.CopyFrom(COUNTS)
    under_way.metadata.Pack(metadata)
    ended = operation(Metadata.STATE_DONE, action="SnapshotInstance", migration="")
    ended.done = True
    ended.response.Pack(made())
    gateway.state.watches.append([under_way, ended])


def test_a_snapshot_says_what_is_new_while_it_is_made_and_shows_the_image(gateway: Any) -> None:
    ends_with_the_image(gateway)
    done = gateway.run("instance", "snapshot", "web-1", "before", "-o", "json")
    assert done.code == 0, done.err
    assert "disk_uploaded 80 %; new 312.0 MiB of 40.0 GiB; read 1.2 GiB of 1.5 GiB touched" in done.err
    assert "before: with its file systems frozen; new 312.0 MiB of 40.0 GiB" in done.err
    assert json.loads(done.out)["displayName"] == "before"
    (asked,) = gateway.state.asked("SnapshotInstance")
    assert (asked.name, asked.display_name) == (f"{PROJECT}/instances/{WEB}", "before")
    assert asked.request_id


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("if-possible", Request.QUIESCE_IF_POSSIBLE),
        ("required", Request.QUIESCE_REQUIRED),
        ("none", Request.QUIESCE_NONE),
    ],
)
def test_the_way_of_freezing_is_what_was_asked_for(
    gateway: Any, word: str, value: "Request.Quiesce.ValueType"
) -> None:
    done = gateway.run("instance", "snapshot", "web-1", "before", "--quiesce", word, "--no-wait")
    assert done.code == 0
    assert "operations/" in done.out
    assert gateway.state.asked("SnapshotInstance")[0].quiesce == value
    assert not gateway.state.asked("WatchOperation")


def test_a_dry_run_of_a_snapshot_validates_only(gateway: Any) -> None:
    done = gateway.run("instance", "snapshot", "web-1", "before", "--dry-run")
    assert done.code == 0
    assert "nothing was done" in done.err
    assert gateway.state.asked("SnapshotInstance")[0].validate_only


def test_a_snapshot_beyond_the_quota_is_a_conflict_with_the_servers_words(gateway: Any) -> None:
    gateway.state.refusals["SnapshotInstance"] = RemudaError(
        Reason.QUOTA_EXCEEDED, "project demo may have 10 bytes of images"
    )
    done = gateway.run("instance", "snapshot", "web-1", "before")
    assert done.code == 4
    assert "QUOTA_EXCEEDED" in done.err
