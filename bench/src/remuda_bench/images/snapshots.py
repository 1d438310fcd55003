"""Two snapshots of a running guest on the lab's mesh: after a lot was written, and after a twentieth of that
was written anew in one piece. Each beside a full backup of the same disk by libvirt alone.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager

import libvirt
from remuda.compute.v1.snapshot_pb2 import SnapshotInstanceRequest
from remuda.image.v1.image_pb2 import Image
from remuda.image.v1.source_pb2 import ImageSource
from remuda_lab.errors import LabError
from remuda_lab.inside import in_guest
from remuda_lab.layout import LOCAL_POOL
from remuda_lab.mesh import CALL_SECONDS, Guest, Mesh

from remuda_bench import machine
from remuda_bench.images.backup import FullBackup
from remuda_bench.images.figures import Snapshot, Snapshots
from remuda_bench.images.taking import Taking, Tell
from remuda_bench.images.transfers import MIB
from remuda_bench.watching import done

HOST = "host1"
FLAVOR = "bench-snapshots"
MEMORY_MIB = 160
DISK_GIB = 2
DATA_MIB = 500
CHANGED_MIB = DATA_MIB // 20
CHANGED_AT_MIB = 201
"""Where in the file: on no border of its chunks, whatever the file system's offset is."""
WRITE_SECONDS = 600.0
SNAPSHOT_SECONDS = 600.0

# A third partition behind the image's own two, which are given back for the kernel to read the table anew.
PREPARE = f"""
set -e
n=0; until umount /data; do n=$((n+1)); [ $n -lt 100 ]; usleep 100000; done
printf 'n\\np\\n3\\n83968\\n\\nw\\n' | fdisk -u /dev/vda >/dev/null
mount -t ext4 /dev/vda2 /data
mke2fs /dev/vda3 >/dev/null 2>&1; mkdir -p /big; mount -t ext4 /dev/vda3 /big
head -c {DATA_MIB * MIB} /dev/urandom > /big/large; sync
"""
CHANGE = (
    f"dd if=/dev/urandom of=/big/large bs={MIB} count={CHANGED_MIB} seek={CHANGED_AT_MIB}"
    " iflag=fullblock conv=notrunc 2>/dev/null && sync"
)


def run_snapshots(mesh: Mesh, runs: int, *, tell: Tell) -> Snapshots:
    """Each run with a guest of its own, so that each first snapshot is one. Raises LabError."""
    taking = Taking()
    mesh.cli().run(
        *("flavor", "create", FLAVOR, "--vcpus", "1"),
        *("--memory", str(MEMORY_MIB), "--disk", str(DISK_GIB)),
    )
    with closing(libvirt.open(mesh.lab.host(HOST).libvirt_uri)) as connection:
        snapshots = [one for run in range(1, runs + 1) for one in _run(mesh, connection, run, tell)]
    mesh.cli().run("flavor", "delete", FLAVOR, "--yes")
    return Snapshots(
        taken=taking.end(machine=machine.with_guests(mesh, HOST), runs=runs),
        disk_bytes=DISK_GIB << 30,
        data_bytes=DATA_MIB * MIB,
        changed_bytes=CHANGED_MIB * MIB,
        memory_mib=MEMORY_MIB,
        snapshots=snapshots,
    )


def _run(mesh: Mesh, connection: libvirt.virConnect, run: int, tell: Tell) -> Iterator[Snapshot]:
    name = f"bench-snapshots-{run}"
    with _guest(mesh, name) as guest:
        tell(f"snapshots, run {run}: {DATA_MIB} MiB are written in the guest")
        in_guest(mesh, guest, PREPARE, timeout=WRITE_SECONDS)
        backup = FullBackup(
            domain=connection.lookupByUUIDString(guest.uid),
            inside=f"{LOCAL_POOL}/{name}.qcow2",
            outside=mesh.lab.paths.host(HOST).local_pool / f"{name}.qcow2",
        )
        for ordinal in (1, 2):
            if ordinal == 2:
                in_guest(mesh, guest, CHANGE, timeout=WRITE_SECONDS)
            # Both read what QEMU has: which of them goes first changes nothing for the other.
            taken = _snapshot(mesh, guest, backup, name, run, ordinal)
            tell(
                f"snapshots, run {run}, {ordinal}.: {taken.seconds:.1f} s, read {taken.read_bytes / MIB:.1f},"
                f" sent {taken.sent_bytes / MIB:.1f} MiB; full backup {taken.backup_seconds:.1f} s"
            )
            yield taken


def _snapshot(mesh: Mesh, guest: Guest, backup: FullBackup, name: str, run: int, ordinal: int) -> Snapshot:
    request = SnapshotInstanceRequest(
        name=guest.name, display_name=f"{name}-{ordinal}", request_id=str(uuid.uuid4())
    )
    began = time.perf_counter()
    operation = mesh.instances.SnapshotInstance(request, timeout=CALL_SECONDS).name
    admitted = time.perf_counter()
    done(mesh, operation, timeout=SNAPSHOT_SECONDS)
    ended = time.perf_counter()
    image = Image()
    if not mesh.operation(operation).response.Unpack(image):
        raise LabError(f"{operation} ended without an image")
    counts = image.source.counts
    backup_seconds, backup_bytes = backup.take()
    consistency = ImageSource.Consistency.Name(image.source.consistency)
    return Snapshot(
        run=run,
        ordinal=ordinal,
        admitted_seconds=admitted - began,
        seconds=ended - began,
        touched_bytes=counts.touched_bytes,
        read_bytes=counts.read_bytes,
        deduplicated_bytes=counts.deduplicated_bytes,
        sent_bytes=counts.sent_bytes,
        stored_bytes=counts.stored_bytes,
        incremental=counts.incremental,
        consistency=consistency.removeprefix("CONSISTENCY_"),
        backup_seconds=backup_seconds,
        backup_bytes=backup_bytes,
    )


@contextmanager
def _guest(mesh: Mesh, name: str) -> Iterator[Guest]:
    """Gone after the block, with the images that were made of it."""
    guest = mesh.launch(name, host=HOST, pool="local", flavor=FLAVOR)
    try:
        yield guest
    finally:
        guest.delete()
        for image in mesh.cli().json("image", "list"):
            if image["displayName"].startswith(f"{name}-"):
                mesh.cli().run("image", "delete", image["displayName"], "--yes")
