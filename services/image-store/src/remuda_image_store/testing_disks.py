"""For tests: disks to upload. Random sparse ones, real file systems, and their qcow2 forms."""

import random
import subprocess
from pathlib import Path

from remuda_core.images.chunks import CHUNK_BYTES

CLUSTER = 65536


def qemu_img(*arguments: object) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True, timeout=120)


def qemu_io(qcow2: Path, *commands: str) -> None:
    arguments = [f"-c{command}" for command in commands]
    subprocess.run(
        ["qemu-io", "-f", "qcow2", *arguments, str(qcow2)], check=True, capture_output=True, timeout=60
    )


def qcow2_of(disk: bytes, directory: Path, *options: str) -> bytes:
    raw, made = directory / "made.raw", directory / "made.qcow2"
    raw.write_bytes(disk)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *options, raw, made)
    return made.read_bytes()


def checked(qcow2: bytes, directory: Path) -> bytes:
    """The virtual disk of a file that qemu-img finds sound."""
    made, raw = directory / "got.qcow2", directory / "got.raw"
    made.write_bytes(qcow2)
    qemu_img("check", "-f", "qcow2", made)
    qemu_img("convert", "-f", "qcow2", "-O", "raw", made, raw)
    return raw.read_bytes()


def random_sparse(seed: int) -> bytes:
    """A few chunks, seldom a whole number of them: noise, text, holes, zeros that were written."""
    dice = random.Random(seed)
    size = dice.randrange(1, 5 * CHUNK_BYTES // 512) * 512
    disk = bytearray(size)
    for _ in range(dice.randrange(8)):
        length = dice.choice((1, 512, CLUSTER, CLUSTER + 1, CHUNK_BYTES, dice.randrange(1, CHUNK_BYTES)))
        begin = dice.randrange(size)
        end = min(size, begin + length)
        kind = dice.randrange(3)
        if kind == 0:
            disk[begin:end] = dice.randbytes(end - begin)
        elif kind == 1:
            disk[begin:end] = (b"so it goes on " * (end - begin))[: end - begin]
        else:
            disk[begin:end] = bytes(end - begin)
    return bytes(disk)


def file_system(kind: str, directory: Path) -> bytes:
    """With files in it. `kind`: ext4, vfat."""
    files, image = directory / "files", directory / f"{kind}.img"
    (files / "deep" / "er").mkdir(parents=True)
    (files / "noise").write_bytes(random.Random(kind).randbytes(3 << 20))
    (files / "deep" / "er" / "text").write_bytes(b"words and words " * 70_000)
    with image.open("xb") as stream:
        stream.truncate(33 << 20)
    if kind == "ext4":
        command = ["mkfs.ext4", "-q", "-F", "-d", str(files), str(image)]
    else:
        command = ["mkfs.vfat", "-F", "32", str(image)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    if kind == "vfat":
        subprocess.run(
            ["mcopy", "-s", "-i", str(image), *map(str, files.iterdir()), "::"], check=True, timeout=60
        )
    return image.read_bytes()
