"""One upload and one download by each way, timed; every byte that comes back is compared."""

from __future__ import annotations

import enum
import filecmp
import hashlib
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from remuda.image.v1 import image_pb2
from remuda.image.v1.image_pb2_grpc import ImageServiceStub

from remuda_bench.images.stand import Stand

MIB = 1 << 20
FRAME_BYTES = MIB
PROJECT = "projects/bench"


class Way(enum.StrEnum):
    REMUDA = "remuda"
    PLAIN = "plain"
    CP = "cp"


class Content(enum.StrEnum):
    """What the disk is filled with."""

    NOISE = "incompressible"
    HALF = "half compressible"


def make_disk(content: Content, size_bytes: int, path: Path, seed: int) -> None:
    """Other bytes for each seed: a chunk that the store has already is not stored again."""
    dice = random.Random(f"{content} {seed}")
    with path.open("wb") as stream:
        for _ in range(size_bytes // MIB):
            block = dice.randbytes(MIB)
            if content is Content.HALF:
                # Sectors in turns of noise and of one letter.
                noise = memoryview(block)
                block = b"".join(bytes(noise[at : at + 512]) + b"r" * 512 for at in range(0, MIB, 1024))
            stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())


def run(stand: Stand, way: Way, disk: Path, *, name: str) -> tuple[float, float]:
    """Seconds of the upload and of the download. Raises ValueError when other bytes come back."""
    back = stand.directory / "back"
    if way is Way.REMUDA:
        times = _remuda(stand, disk, back, name)
    elif way is Way.PLAIN:
        times = _plain(stand, disk, back)
    else:
        times = _cp(disk, back)
    if not filecmp.cmp(disk, back, shallow=False):
        raise ValueError(f"{way}: other bytes came back")
    back.unlink()
    return times


def _remuda(stand: Stand, disk: Path, back: Path, name: str) -> tuple[float, float]:
    images = ImageServiceStub(stand.channel)
    image = image_pb2.Image(
        display_name=name,
        format=image_pb2.Image.FORMAT_RAW,
        file_bytes=disk.stat().st_size,
        # Before the clock starts: the plain stream's client takes none.
        sha256=_sha256(disk),
    )
    made = images.CreateImage(image_pb2.CreateImageRequest(parent=PROJECT, image=image))
    up = _seconds(lambda: images.UploadImage(_frames(disk, made.name)))
    request = image_pb2.DownloadImageRequest(name=made.name)

    def download() -> None:
        with back.open("r+b") as stream:
            for frame in images.DownloadImage(request):
                stream.write(frame.data or bytes(frame.zero_bytes))

    down = _seconds_into(back, disk, download)
    images.DeleteImage(image_pb2.DeleteImageRequest(name=made.name))
    return up, down


def _plain(stand: Stand, disk: Path, back: Path) -> tuple[float, float]:
    up = _seconds(lambda: stand.plain.send(disk))
    return up, _seconds_into(back, disk, lambda: stand.plain.receive(disk, back))


def _cp(disk: Path, back: Path) -> tuple[float, float]:
    def copy() -> None:
        shutil.copyfile(disk, back)
        with back.open("rb") as stream:
            os.fsync(stream.fileno())

    return _seconds_into(back, disk, copy), _seconds_into(back, disk, copy)


def _frames(disk: Path, name: str) -> Iterator[image_pb2.UploadImageRequest]:
    size, offset = disk.stat().st_size, 0
    with disk.open("rb") as stream:
        while data := stream.read(FRAME_BYTES):
            yield image_pb2.UploadImageRequest(
                name="" if offset else name,
                offset=offset,
                data=data,
                finish=offset + len(data) == size,
            )
            offset += len(data)


def _sha256(disk: Path) -> str:
    with disk.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _seconds_into(back: Path, disk: Path, work: Callable[[], object]) -> float:
    """`work` writes over a file of zeros. A virtual machine that hands free memory back to its host pays
    seconds per gibibyte to have it again: that would be counted for whoever comes first.
    """
    zeros, size = bytes(MIB), disk.stat().st_size
    with back.open("wb") as stream:
        for at in range(0, size, MIB):
            stream.write(zeros[: size - at])
        stream.flush()
        os.fsync(stream.fileno())
    return _seconds(work)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
