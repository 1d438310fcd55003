"""A bootable disk without root: MBR, a FAT16 partition with SYSLINUX, an ext4 partition for data.

The partitions are made as plain files and put together, so nothing is ever mounted.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from remuda_lab.commands import find, run
from remuda_lab.errors import LabError

SECTOR = 512
MIB = 1024 * 1024
BOOT_START_MIB = 1
BOOT_SIZE_MIB = 24
DATA_SIZE_MIB = 16

_FAT16, _LINUX = 0x06, 0x83
_MBR_CODE = Path("/usr/lib/syslinux/mbr/mbr.bin")
_LBA_ONLY_CHS = b"\xfe\xff\xff"  # "cylinder/head/sector cannot say it": the reader takes the LBA fields

# swiotlb: a guest with DIMM slots reserves 64 MiB for bounce buffers otherwise, and 128 MiB of RAM panic.
# no_timer_check, mitigations, cryptomgr: seconds of boot time under emulation.
KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet panic=1 swiotlb=512 memhp_default_state=online_movable"
    " mitigations=off no_timer_check cryptomgr.notests"
)


def partition_entry(*, bootable: bool, kind: int, start_mib: int, size_mib: int) -> bytes:
    """One 16-byte entry of an MBR partition table."""
    per_mib = MIB // SECTOR
    flag = 0x80 if bootable else 0
    return struct.pack(
        "<B3sB3sII", flag, _LBA_ONLY_CHS, kind, _LBA_ONLY_CHS, start_mib * per_mib, size_mib * per_mib
    )


def master_boot_record(code: bytes) -> bytes:
    """The first sector: boot code (at most 440 bytes), two partitions, signature."""
    if len(code) > 440:
        raise LabError(f"the boot code has {len(code)} bytes; an MBR holds 440")
    boot = partition_entry(bootable=True, kind=_FAT16, start_mib=BOOT_START_MIB, size_mib=BOOT_SIZE_MIB)
    data_start = BOOT_START_MIB + BOOT_SIZE_MIB
    data = partition_entry(bootable=False, kind=_LINUX, start_mib=data_start, size_mib=DATA_SIZE_MIB)
    return code.ljust(446, b"\0") + boot + data + bytes(32) + b"\x55\xaa"


def build_disk(*, kernel: Path, initrd: Path, work: Path, output: Path) -> None:
    """Write the raw disk to ``output``; ``work`` is scratch space."""
    boot = _boot_partition(kernel=kernel, initrd=initrd, work=work)
    data = _data_partition(work)
    with output.open("wb") as disk:
        disk.write(master_boot_record(_MBR_CODE.read_bytes()[:440]))
        for partition, start_mib in ((boot, BOOT_START_MIB), (data, BOOT_START_MIB + BOOT_SIZE_MIB)):
            disk.seek(start_mib * MIB)
            with partition.open("rb") as source:
                _copy_sparse(source, disk)
        disk.truncate((BOOT_START_MIB + BOOT_SIZE_MIB + DATA_SIZE_MIB) * MIB)


def to_qcow2(raw: Path, qcow2: Path) -> None:
    """Convert; zero blocks take no space in the result."""
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(qcow2)])


def _copy_sparse(source: BinaryIO, target: BinaryIO) -> None:
    block, zero = 64 * 1024, bytes(64 * 1024)
    while data := source.read(block):
        if data == zero:
            target.seek(len(data), 1)
        else:
            target.write(data)


def _boot_partition(*, kernel: Path, initrd: Path, work: Path) -> Path:
    partition = _sparse(work / "boot.fat", BOOT_SIZE_MIB)
    config = work / "syslinux.cfg"
    config.write_text(
        "SERIAL 0 115200\nPROMPT 0\nTIMEOUT 1\nDEFAULT remuda\n"
        f"LABEL remuda\n KERNEL vmlinuz\n INITRD initrd.gz\n APPEND {KERNEL_ARGUMENTS}\n"
    )
    run([str(find("mkfs.fat")), "-F", "16", "-s", "8", "-i", "52454d55", "-n", "REMUDABOOT", str(partition)])
    run(["mcopy", "-i", str(partition), str(kernel), "::/vmlinuz"])
    run(["mcopy", "-i", str(partition), str(initrd), "::/initrd.gz"])
    run(["mcopy", "-i", str(partition), str(config), "::/syslinux.cfg"])
    run(["syslinux", "--install", str(partition)])
    return partition


def _data_partition(work: Path) -> Path:
    partition = _sparse(work / "data.ext4", DATA_SIZE_MIB)
    content = work / "data"
    content.mkdir()
    (content / "tick").write_text(f"{0:<15}\n")
    (content / "boots").write_text("0\n")
    # With a journal: hosts of the lab lose power on purpose.
    run([str(find("mke2fs")), "-q", "-t", "ext4", "-L", "remuda-data", "-d", str(content), str(partition)])
    return partition


def _sparse(path: Path, size_mib: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size_mib * MIB)
    return path
