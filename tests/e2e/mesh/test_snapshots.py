"""Images of real guests: through libvirt's backup jobs into the image store, and into guests again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from remuda.compute.v1.instance_pb2 import Instance
from remuda.compute.v1.operation_pb2 import OperationMetadata
from remuda.compute.v1.snapshot_pb2 import SnapshotInstanceRequest
from remuda.image.v1.image_pb2 import Image
from remuda.image.v1.source_pb2 import ImageSource
from remuda_core.errors import Reason
from remuda_core.rpc.status import from_status
from remuda_lab.inside import in_guest
from remuda_lab.mesh import Guest, Mesh, unpack_metadata

from tests.e2e.mesh import picturing
from tests.e2e.mesh.conftest import leaving_nothing
from tests.e2e.mesh.picturing import begin, equals_disk, image_is_gone, left_of_snapshots, made

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

MIB = 1 << 20
CHUNK = 4 * MIB
FLAVOR = "roomy"
FILE_MIB = 64
REQUIRED = SnapshotInstanceRequest.QUIESCE_REQUIRED

# A third partition behind the image's own two, which are given back for the kernel to read the table anew.
PREPARE = f"""
set -e
n=0; until umount /data; do n=$((n+1)); [ $n -lt 100 ]; usleep 100000; done
printf 'n\\np\\n3\\n83968\\n\\nw\\n' | fdisk -u /dev/vda >/dev/null
mount -t ext4 /dev/vda2 /data
mke2fs /dev/vda3 >/dev/null 2>&1; mkdir -p /big; mount -t ext4 /dev/vda3 /big
head -c {FILE_MIB * MIB} /dev/urandom > /big/large; sync
"""
LOOK = "set -e; mkdir -p /big; mount -t ext4 /dev/vda3 /big; sha256sum < /big/large; cat /big/little"
SLOW_MBIT = 16
"""32 MiB that no compression shortens take a quarter of a minute."""
FRESH = "head -c 33554432 /dev/urandom > /big/fresh; sync"


@pytest.fixture(scope="module", autouse=True)
def nothing_left(mesh: Mesh) -> Iterator[None]:
    remuda = mesh.cli()
    remuda.run("flavor", "create", FLAVOR, "--vcpus", "1", "--memory", "160", "--disk", "2")
    with leaving_nothing(mesh):
        yield
    remuda.run("flavor", "delete", FLAVOR, "--yes")
    for image in picturing.images(mesh):
        if image.startswith(("keeper-", "copy-")):
            remuda.run("image", "delete", image, "--yes")


@pytest.fixture(scope="module")
def keeper(mesh: Mesh, nothing_left: None) -> Guest:
    """All tests here take it where it is, and leave it running. 2 GiB of disk, on a local pool."""
    guest = mesh.launch("keeper", host="host1", flavor=FLAVOR)
    in_guest(mesh, guest, PREPARE)
    return guest


@contextmanager
def slow(mesh: Mesh, host: str) -> Iterator[None]:
    mesh.lab.shape(host, SLOW_MBIT)
    try:
        yield
    finally:
        mesh.lab.shape(host, None)


def test_snapshots_of_a_running_guest_cost_what_was_touched_and_become_guests(
    mesh: Mesh, keeper: Guest, tmp_path: Path
) -> None:
    digest = in_guest(mesh, keeper, "sha256sum < /big/large")
    before = keeper.view.state()
    first = has_the_files_frozen_for_a_moment(mesh, keeper)
    sends_little_when_little_has_changed(mesh, keeper, first)
    after = keeper.view.wait_tick(before.memory_tick)
    assert (after.boot_nonce, after.boots) == (before.boot_nonce, before.boots)

    copy = mesh.launch("copy", host="host3", flavor=FLAVOR, image="keeper-2")
    inside = copy.view.state()
    assert (inside.boots, inside.hostname) == (before.boots + 1, "copy")
    assert inside.disk_tick >= before.disk_tick
    assert in_guest(mesh, copy, LOOK) == f"{digest}little\n"
    is_refused_when_it_must_be_frozen_and_cannot(mesh, copy)
    is_of_one_that_is_off(mesh, copy, tmp_path)
    copy.delete()


def has_the_files_frozen_for_a_moment(mesh: Mesh, guest: Guest) -> Image:
    operation = begin(mesh, guest, "keeper-1", REQUIRED)
    shown = [percent for percent in picturing.percents(mesh, operation) if percent]
    assert shown == sorted(shown), "percent never falls"
    image = made(mesh, operation)
    counts = image.source.counts
    assert image.source.consistency == ImageSource.CONSISTENCY_FILESYSTEM
    assert counts.disk_bytes == image.virtual_bytes == 2048 * MIB
    assert counts.touched_bytes >= FILE_MIB * MIB
    # One file of 64 MiB, and what a new file system writes about itself all over the disk.
    assert FILE_MIB * MIB <= counts.sent_bytes <= min(96 * MIB, counts.touched_bytes)
    assert counts.stored_bytes == image.stored_bytes <= counts.sent_bytes
    events = mesh.cli().json("instance", "events", "keeper")
    (event,) = [one for one in events if one["type"] == "SNAPSHOT_CREATED"]
    assert event.get("severity", "SEVERITY_INFO") == "SEVERITY_INFO"
    assert guest.record().state == Instance.STATE_RUNNING
    assert left_of_snapshots(mesh, guest) == []
    return image


def sends_little_when_little_has_changed(mesh: Mesh, guest: Guest, first: Image) -> None:
    in_guest(mesh, guest, "echo little > /big/little; head -c 300000 /dev/urandom > /big/more; sync")
    answer = mesh.cli().json("instance", "snapshot", "keeper", "keeper-2", "--quiesce", "required")
    image = picturing.image_named(mesh, answer["name"])
    counts = image.source.counts
    assert image.source.consistency == ImageSource.CONSISTENCY_FILESYSTEM
    assert counts.sent_bytes <= min(24 * MIB, first.source.counts.sent_bytes // 2), counts
    assert counts.sent_bytes <= counts.touched_bytes
    assert counts.touched_bytes % CHUNK == 0


def is_refused_when_it_must_be_frozen_and_cannot(mesh: Mesh, guest: Guest) -> None:
    picturing.silence_agent(mesh, guest)
    ended = mesh.wait_done(begin(mesh, guest, "copy-1", REQUIRED), timeout=picturing.PATIENCE)
    assert from_status(ended.error).reason is Reason.QUIESCE_FAILED, ended
    image_is_gone(mesh, "copy-1")
    assert left_of_snapshots(mesh, guest) == []
    assert guest.record().state == Instance.STATE_RUNNING
    guest.view.wait_tick(guest.view.state().memory_tick + 1)
    image = made(mesh, begin(mesh, guest, "copy-1"))
    assert image.source.consistency == ImageSource.CONSISTENCY_CRASH
    events = mesh.cli().json("instance", "events", "copy")
    (event,) = [one for one in events if one["type"] == "SNAPSHOT_CREATED"]
    assert event["severity"] == "SEVERITY_WARNING"


def is_of_one_that_is_off(mesh: Mesh, guest: Guest, place: Path) -> None:
    mesh.cli().run("instance", "stop", "copy", "--force")
    image = made(mesh, begin(mesh, guest, "copy-2", REQUIRED))
    assert image.source.consistency == ImageSource.CONSISTENCY_OFF
    assert guest.record().state == Instance.STATE_STOPPED
    equals_disk(mesh, "copy-2", guest, place)


def test_a_cancel_in_the_middle_leaves_no_image_and_no_job(mesh: Mesh, keeper: Guest) -> None:
    before = keeper.view.state()
    for attempt in range(5):
        name = f"keeper-cancelled-{attempt}"
        in_guest(mesh, keeper, FRESH)
        with slow(mesh, keeper.host()):
            operation = begin(mesh, keeper, name)
            picturing.wait_reading(mesh, operation)
            mesh.cli().run("operation", "cancel", operation.rpartition("/")[2])
        ended = mesh.wait_done(operation, timeout=picturing.PATIENCE)
        if unpack_metadata(ended).state == OperationMetadata.STATE_CANCELLED:
            break
        # It was over before it was asked to stop.
        made(mesh, operation)
    else:
        pytest.fail("it was never caught in the middle")
    image_is_gone(mesh, name)
    assert left_of_snapshots(mesh, keeper) == []
    record = keeper.record()
    assert (record.state, record.operation) == (Instance.STATE_RUNNING, "")
    keeper.view.wait_tick(before.memory_tick)


def test_after_a_block_migration_and_a_kill_of_the_agent_the_image_is_still_the_disk(
    mesh: Mesh, keeper: Guest, tmp_path: Path
) -> None:
    """The guest is paused, so that its disk can be compared with what was made of it."""
    target = "host2" if keeper.host() != "host2" else "host1"
    assert not mesh.wait_done(mesh.live_migrate(keeper, to=target).name).HasField("error")
    in_guest(mesh, keeper, FRESH)
    picturing.paused(mesh, keeper)
    with slow(mesh, target):
        operation = begin(mesh, keeper, "keeper-moved")
        picturing.wait_reading(mesh, operation)
        mesh.cluster.kill(target)
    mesh.cluster.start(target)
    image = made(mesh, operation)
    assert image.source.consistency == ImageSource.CONSISTENCY_CRASH
    assert keeper.record().state == Instance.STATE_PAUSED
    assert left_of_snapshots(mesh, keeper) == []
    equals_disk(mesh, "keeper-moved", keeper, tmp_path)
    picturing.resumed(mesh, keeper)
    keeper.view.wait_up()
