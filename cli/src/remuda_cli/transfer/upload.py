"""A file to the image store, from the offset that is safe there."""

import hashlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
from remuda.image.v1 import image_pb2

from remuda_cli.exit_codes import ExitCode
from remuda_cli.failure import Failure, usage
from remuda_cli.rpc_failure import code_of, from_rpc_error
from remuda_cli.session import Session
from remuda_cli.transfer.meter import Meter

FRAME_BYTES = 1 << 20
ATTEMPTS = 5
"""Broken streams in a row that moved no byte before the upload is given up."""
_GOES_ON = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.CANCELLED)
_PROPERTIES = ("min_disk_gib", "min_memory_mib", "architecture", "guest_agent", "rescue")
_QCOW2_MAGIC = b"QFI\xfb"

Image = image_pb2.Image


def format_of(file: Path, said: str) -> "image_pb2.Image.Format.ValueType":
    """`auto` is decided by the first bytes; what is no qcow2 is taken as it is."""
    if said == "auto":
        with file.open("rb") as stream:
            return Image.FORMAT_QCOW2 if stream.read(4) == _QCOW2_MAGIC else Image.FORMAT_RAW
    return Image.FORMAT_QCOW2 if said == "qcow2" else Image.FORMAT_RAW


def name_from(file: Path) -> str:
    """`Debian_12.qcow2` -> `debian-12`. Raises Failure (usage) when nothing is left."""
    name = re.sub(r"[^a-z0-9.]+", "-", file.stem.lower()).strip("-.")[:63].strip("-.")
    if not name:
        raise usage(f"no image name can be made from {file.name!r}", "the same command with --name")
    return name


def sha256_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def record_for(session: Session, image: Image, request_id: str) -> Image:
    """The image's record: made now, or the one that an earlier upload of the same file has left."""
    gateway = session.gateway
    request = image_pb2.CreateImageRequest(
        parent=gateway.project, image=image, request_id=request_id, validate_only=session.dry_run
    )
    try:
        return gateway.call(gateway.images.CreateImage, request)
    except Failure as failure:
        if failure.reason != "ALREADY_EXISTS":
            raise
        name = f"{gateway.project}/images/{image.display_name}"
        found = gateway.call(gateway.images.GetImage, image_pb2.GetImageRequest(name=name))
        if not _is_left_of(found, image):
            raise
        session.note(f"going on with the upload of {image.display_name} ({found.uid})")
        return found


def _is_left_of(found: Image, image: Image) -> bool:
    """Whether `found` is what a command that was broken off has made of the same `image`."""
    same = all(getattr(found, field) == getattr(image, field) for field in ("format", "file_bytes", "sha256"))
    if found.state in (Image.STATE_UPLOADING, Image.STATE_PENDING):
        return same
    # Broken off when it had only to hear that it is done. Without a SHA-256 the bytes may be others.
    return found.state == Image.STATE_ACTIVE and same and bool(image.sha256) and _says_the_same(found, image)


def _says_the_same(found: Image, image: Image) -> bool:
    visibility = image.visibility or Image.VISIBILITY_PRIVATE
    return (found.visibility, set(found.shared_with)) == (visibility, set(image.shared_with)) and all(
        getattr(found, field) == getattr(image, field) for field in _PROPERTIES
    )


def send(session: Session, file: Path, record: Image) -> Image:
    """The image, ACTIVE or PENDING. A broken stream is opened again from what is safe.

    Raises Failure: the store's, or INTERRUPTED with how to go on.
    """
    gateway = session.gateway
    total = record.file_bytes
    best, idle = -1, 0
    with Meter(f"uploading {record.display_name}", total=total, write=session.note) as meter:
        while True:
            asked = image_pb2.GetUploadRequest(name=record.name)
            safe = gateway.call(gateway.images.GetUpload, asked).committed_bytes
            idle = 0 if safe > best else idle + 1
            best = max(best, safe)
            frames = _frames(file, record.name, safe, meter)
            try:
                return gateway.images.UploadImage(frames).image
            except grpc.RpcError as error:
                code = code_of(error)
                if code not in _GOES_ON or idle >= ATTEMPTS:
                    raise from_rpc_error(error) from None
                session.note("the upload broke; asking the store from where to go on")
            except KeyboardInterrupt:
                raise Failure(
                    ExitCode.INTERRUPTED,
                    f"interrupted; {record.display_name} keeps the bytes that are safe",
                    hints=["the same command goes on from there"],
                ) from None
            time.sleep(min(2.0, 0.2 * 2**idle))


def _frames(file: Path, name: str, offset: int, meter: Meter) -> Iterator[image_pb2.UploadImageRequest]:
    with file.open("rb") as stream:
        stream.seek(offset)
        first = True
        data = stream.read(FRAME_BYTES)
        while True:
            following = stream.read(FRAME_BYTES)
            yield image_pb2.UploadImageRequest(
                name=name if first else "", offset=offset, data=data, finish=not following
            )
            offset += len(data)
            meter.at(offset)
            if not following:
                return
            first, data = False, following
