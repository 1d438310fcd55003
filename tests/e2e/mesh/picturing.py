"""What tests of snapshots do with a guest, with its disk and with the images that are made of it."""

from __future__ import annotations

import json
import subprocess
import uuid
from pathlib import Path

import grpc
from google.longrunning import operations_pb2
from remuda.compute.v1 import operation_pb2
from remuda.compute.v1.instance_pb2 import Instance
from remuda.compute.v1.snapshot_pb2 import SnapshotInstanceRequest
from remuda.image.v1.image_pb2 import GetImageRequest, Image
from remuda.image.v1.image_pb2_grpc import ImageServiceStub
from remuda_lab.errors import LabError
from remuda_lab.inside import ask_agent
from remuda_lab.mesh import CALL_SECONDS, Guest, Mesh, unpack_metadata
from remuda_lab.waiting import wait_for

PATIENCE = 180.0


# -- the guest ----------------------------------------------------------------------------------------


def silence_agent(mesh: Mesh, guest: Guest) -> None:
    """The guest's agent stops for good, once it has answered that a shell will see to it."""
    script = "sleep 2; killall -STOP qemu-ga"
    ask_agent(mesh, guest, "guest-exec", {"path": "/bin/sh", "arg": ["-c", script]})
    host, ping = mesh.lab.host(guest.host()), json.dumps({"execute": "guest-ping"})

    def silent() -> bool:
        try:
            host.virsh("qemu-agent-command", guest.uid, ping, "--timeout", "3")
        except LabError:
            return True
        return False

    wait_for(f"the agent of {guest.name} is silent", silent, timeout=PATIENCE, interval=0.5)


def paused(mesh: Mesh, guest: Guest) -> None:
    mesh.lab.host(guest.host()).virsh("suspend", guest.uid)
    guest.wait_state(Instance.STATE_PAUSED, timeout=PATIENCE)


def resumed(mesh: Mesh, guest: Guest) -> None:
    mesh.lab.host(guest.host()).virsh("resume", guest.uid)
    guest.wait_state(Instance.STATE_RUNNING, timeout=PATIENCE)


# -- operations ---------------------------------------------------------------------------------------


def begin(
    mesh: Mesh,
    guest: Guest,
    name: str,
    quiesce: SnapshotInstanceRequest.Quiesce.ValueType = SnapshotInstanceRequest.QUIESCE_IF_POSSIBLE,
) -> str:
    """Admits a snapshot; the operation's name."""
    request = SnapshotInstanceRequest(
        name=guest.name, display_name=name, quiesce=quiesce, request_id=str(uuid.uuid4())
    )
    return str(mesh.instances.SnapshotInstance(request, timeout=CALL_SECONDS).name)


def made(mesh: Mesh, operation: str) -> Image:
    """The image that an operation ends with, as its answer and as the image store's record have it."""
    ended = mesh.wait_done(operation, timeout=PATIENCE)
    image = answered(ended)
    assert image.name == unpack_metadata(ended).image
    shown = image_named(mesh, image.name)
    assert (shown.state, shown.source) == (Image.STATE_ACTIVE, image.source)
    return image


def image_named(mesh: Mesh, name: str) -> Image:
    """By resource name."""
    return ImageServiceStub(mesh.channel).GetImage(GetImageRequest(name=name), timeout=CALL_SECONDS)


def percents(mesh: Mesh, operation: str) -> list[int]:
    """As they are told until it ends."""
    request = operation_pb2.WatchOperationRequest(name=operation)
    watched = mesh.watches.WatchOperation(request, timeout=PATIENCE)
    return [unpack_metadata(message.operation).progress.percent for message in watched]


def answered(ended: operations_pb2.Operation) -> Image:
    assert not ended.HasField("error"), str(ended.error)
    image = Image()
    assert ended.response.Unpack(image)
    return image


def wait_reading(mesh: Mesh, operation: str) -> None:
    """Until bytes have been read, or it is over."""

    def reading() -> bool:
        request = operation_pb2.WatchOperationRequest(name=operation)
        watched = mesh.watches.WatchOperation(request, timeout=PATIENCE)
        try:
            for message in watched:
                metadata = unpack_metadata(message.operation)
                if metadata.progress.snapshot.read_bytes or message.operation.done:
                    return True
        except grpc.RpcError:
            pass
        finally:
            watched.cancel()
        return False

    wait_for(f"{operation} reads", reading, timeout=PATIENCE)


# -- what there is ------------------------------------------------------------------------------------


def left_of_snapshots(mesh: Mesh, guest: Guest) -> list[str]:
    """On the guest's host: a job of libvirt's, files beside the disk, sockets."""
    host = guest.host()
    job = mesh.lab.host(host).virsh("domjobinfo", guest.uid)
    found = [] if "None" in job.partition("\n")[0] else [job]
    found += [str(path) for path in mesh.directory(host, guest.uid).glob("*.scratch")]
    sockets = mesh.lab.paths.host(host).state / "snapshots"
    return found + ([str(path) for path in sockets.iterdir()] if sockets.is_dir() else [])


def images(mesh: Mesh) -> list[str]:
    """By display name."""
    return [str(one["displayName"]) for one in mesh.cli().json("image", "list")]


def image_is_gone(mesh: Mesh, name: str) -> None:
    """The image store removes what was marked, in its own time."""
    wait_for(
        f"image {name} is gone",
        lambda: name not in images(mesh),
        timeout=PATIENCE,
        status=lambda: images(mesh),
    )


def equals_disk(mesh: Mesh, image: str, guest: Guest, place: Path) -> None:
    """Bit by bit, of a guest that stands still: what a client downloads, and what its host has."""
    copy = place / f"{image}.raw"
    mesh.cli().run("image", "download", image, str(copy))
    disk = mesh.directory(guest.host(), guest.uid) / "disk.qcow2"
    # Its base is named by a path of the host.
    overlay = json.loads(qemu_img("info", "-U", "--output=json", str(disk)))
    base = mesh.lab.paths.host(guest.host()).local_pool / "base" / Path(overlay["backing-filename"]).name
    assert base.exists(), overlay
    options = {
        "driver": "qcow2",
        "file": {"driver": "file", "filename": str(disk)},
        "backing": {"driver": "raw", "file": {"driver": "file", "filename": str(base)}},
    }
    answer = qemu_img("compare", "-U", "-f", "raw", str(copy), f"json:{json.dumps(options)}")
    assert "identical" in answer, answer
    copy.unlink()


def qemu_img(*arguments: str) -> str:
    done = subprocess.run(["qemu-img", *arguments], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout
