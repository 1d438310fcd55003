"""Is this file a disk that may be accepted? What is asked of it, and what of qemu-img.

A qcow2 file can name other files: a backing file, a data file (the class of CVE-2024-32498). The header
fields that say so are read before any program opens the file; then qemu-img, in a child with limits, is asked
for its opinion of everything. Layout: QEMU's docs/interop/qcow2.txt.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from remuda_core.errors import Reason, RemudaError
from remuda_core.images.disk import read_at

from remuda_image_store.child import Limits, run

_SECTOR = 512
HEAD_BYTES = 512
_QCOW2 = b"QFI\xfb"
_EXTERNAL_DATA = 1 << 2
# (where, what, name): formats that a guest would see as its disk's content if they were taken for raw.
_SIGNATURES = (
    (0, _QCOW2, "qcow2"),
    (0, b"QED\0", "QED"),
    (0, b"KDMV", "VMDK"),
    (0, b"COWD", "VMDK"),
    (0, b"# Disk DescriptorFile", "VMDK"),
    (0, b"vhdxfile", "VHDX"),
    (0, b"conectix", "VHD"),
    (64, b"\x7f\x10\xda\xbe", "VDI"),
    (0, b"LUKS\xba\xbe", "LUKS"),
)
# Opening reads tables, and check builds refcounts in memory; neither writes.
_LOOK = Limits(memory_bytes=1 << 30, cpu_seconds=60, file_bytes=1 << 20, seconds=120.0)


class Refused(RemudaError):
    """The file is not acceptable, and never will be."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.IMAGE_REFUSED, message)


async def inspect(path: Path, *, largest_bytes: int) -> int:
    """Size of the virtual disk of a qcow2 file. Raises Refused. `largest_bytes`: of the virtual disk."""
    with path.open("rb", buffering=0) as file:
        check_head(read_at(file.fileno(), 0, HEAD_BYTES), qcow2=True)
    virtual_bytes = check_size(check_info(await _ask(path, "info")), largest_bytes)
    check_report(await _ask(path, "check"))
    return virtual_bytes


def check_head(head: bytes, *, qcow2: bool) -> None:
    """The first bytes of the file. Raises Refused."""
    found = next((name for at, magic, name in _SIGNATURES if head[at:].startswith(magic)), "raw")
    if not qcow2:
        if found != "raw":
            raise Refused(f"the file is {found}, not raw")
        return
    if found != "qcow2" or len(head) < 104:
        raise Refused(f"the file is {found}, not qcow2" if found != "qcow2" else "the file is truncated")
    version, backing_offset = struct.unpack_from(">IQ", head, 4)
    (crypt_method,) = struct.unpack_from(">I", head, 32)
    if version not in (2, 3):
        raise Refused(f"qcow2 version {version} is unknown")
    if backing_offset:
        raise Refused("the file has a backing file")
    if crypt_method:
        raise Refused("the file is encrypted")
    if version == 3 and struct.unpack_from(">Q", head, 72)[0] & _EXTERNAL_DATA:
        raise Refused("the file keeps its data in another file")


def check_info(info: Mapping[str, Any]) -> int:
    """What `qemu-img info --output=json` says; returns the size of the virtual disk. Raises Refused."""
    special = info.get("format-specific", {}).get("data", {})
    if info.get("format") != "qcow2":
        raise Refused(f"the file is {info.get('format')}, not qcow2")
    if "backing-filename" in info or "full-backing-filename" in info:
        raise Refused("the file has a backing file")
    if "data-file" in special:
        raise Refused("the file keeps its data in another file")
    if info.get("encrypted") or "encrypt" in special:
        raise Refused("the file is encrypted")
    if special.get("corrupt"):
        raise Refused("the file is marked corrupt")
    size = info.get("virtual-size")
    if not isinstance(size, int):
        raise Refused("the size of the virtual disk is unknown")
    return size


def check_raw(head: bytes, file_bytes: int) -> None:
    """What a raw file tells by its first bytes and its size. Raises Refused."""
    check_head(head, qcow2=False)
    _check_sectors(file_bytes)


def check_size(virtual_bytes: int, largest_bytes: int) -> int:
    _check_sectors(virtual_bytes)
    check_largest(virtual_bytes, largest_bytes)
    return virtual_bytes


def _check_sectors(virtual_bytes: int) -> None:
    if virtual_bytes <= 0 or virtual_bytes % _SECTOR:
        raise Refused(f"a disk of {virtual_bytes} bytes is truncated: not a multiple of {_SECTOR}")


def check_largest(virtual_bytes: int, largest_bytes: int) -> None:
    if virtual_bytes > largest_bytes:
        raise Refused(f"a disk of {virtual_bytes} bytes is larger than the {largest_bytes} allowed here")


def check_report(report: Mapping[str, Any]) -> None:
    """What `qemu-img check --output=json` says. Raises Refused. Leaked clusters only waste room.

    The clusters that a truncated file lacks count as corruptions; a plain read of them would give zeros.
    """
    if report.get("corruptions") or report.get("check-errors"):
        raise Refused("the file is truncated or corrupt")


async def _ask(path: Path, verb: str) -> Mapping[str, Any]:
    # The format is always named: a probe would open what the content chooses.
    command = ["qemu-img", verb, "--force-share", "-f", "qcow2", "--output=json", str(path)]
    done = await run(command, _LOOK)
    # `check` exits with 2 for corruptions and 3 for leaks, and reports them.
    if done.returncode not in ((0,) if verb == "info" else (0, 2, 3)):
        raise Refused(f"qemu-img {verb} refuses the file: {_without(done.trouble, path)}")
    try:
        answer = json.loads(done.output)
    except ValueError as error:
        raise Refused(f"qemu-img {verb} cannot describe the file") from error
    if not isinstance(answer, dict):
        raise Refused(f"qemu-img {verb} cannot describe the file")
    return answer


def _without(trouble: str, path: Path) -> str:
    """Where the file lies in here is nobody's business."""
    return trouble.replace(str(path), "the file").removeprefix("qemu-img: ")
