"""The config drive is of a kind that can be moved: libvirt never copies readonly disks, nor CD-ROMs."""

from remuda.agent.v1.probe_pb2 import GuestDisk
from remuda.compute.v1.moving_pb2 import MigrationCheck

from remuda_scheduler.preflight.facts import Facts, NoAnswer
from remuda_scheduler.preflight.rows import FAIL, NOT_APPLICABLE, PASS, row, unknown

_CONDITION = MigrationCheck.CONDITION_CONFIG_DRIVE
_REQUIRED = (
    "on local storage a vfat config drive on a virtio disk that is not readonly, "
    "in the instance's own directory"
)


def config_drive(facts: Facts) -> MigrationCheck | None:
    if facts.probes is None:
        return None
    probe = facts.probes.guest
    if isinstance(probe.found, NoAnswer):
        return unknown(facts, _CONDITION, of=(probe,), source=probe, required=_REQUIRED)
    drives = [disk for disk in probe.found.disks if disk.config_drive]
    if not drives:
        return row(
            facts, _CONDITION, NOT_APPLICABLE, of=(probe,), source="no config drive", required=_REQUIRED
        )
    of = (probe, facts.probes.shared_file) if facts.probes.shared_file is not None else (probe,)
    bad = [disk for disk in drives if not _movable(disk, facts.same_storage)]
    storage = "the same storage: it stays where it is" if facts.same_storage else "it is copied"
    return row(
        facts,
        _CONDITION,
        FAIL if bad else PASS,
        of=of,
        source="; ".join(_words(disk) for disk in bad or drives),
        target=storage,
        required=_REQUIRED,
        fix="Stop the instance and start it again, so that its config drive is defined as vfat on virtio, "
        "or move it between hosts that share its pool."
        if bad
        else "",
    )


def _movable(disk: GuestDisk, same_storage: bool) -> bool:
    inside = not disk.source.startswith("/")
    if same_storage:
        return inside
    return inside and disk.device == "disk" and disk.bus == "virtio" and not disk.readonly


def _words(disk: GuestDisk) -> str:
    readonly = ", readonly" if disk.readonly else ""
    return f"{disk.target}: {disk.device} on {disk.bus}, {disk.format or 'format unknown'}{readonly}"
