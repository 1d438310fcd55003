"""A disk from the image store into a file: raw and sparse, or qcow2."""

import time
from pathlib import Path

import grpc
from remuda.image.v1 import image_pb2

from remuda_cli.exit_codes import ExitCode
from remuda_cli.failure import Failure, usage
from remuda_cli.rpc_failure import code_of, from_rpc_error
from remuda_cli.session import Session
from remuda_cli.transfer.meter import Meter

ATTEMPTS = 5
"""Broken streams in a row that brought no byte before the download is given up."""


Image = image_pb2.Image
_SUFFIXES = {Image.FORMAT_RAW: "", Image.FORMAT_QCOW2: ".qcow2"}


def receive(
    session: Session, image: Image, file: Path, form: "image_pb2.Image.Format.ValueType" = Image.FORMAT_RAW
) -> int:
    """Bytes of the file. They gather in FILE.<uuid>.partial, which is as long as what has come, so that a
    broken download goes on, at whichever store answers: the same image is the same file everywhere. Its name
    holds the image's UUID and the format, so that nothing else is ever continued.

    Raises Failure: the store's, FAILED when the disk came short, INTERRUPTED with how to go on.
    """
    partial = file.with_name(f"{file.name}.{image.uid}{_SUFFIXES[form]}.partial")
    try:
        partial.touch()
    except OSError as error:
        raise usage(f"cannot write {partial}: {error.strerror}") from None
    start = partial.stat().st_size
    idle = total = 0
    # The size of a qcow2 file is known with its first frame; until then the disk's has to do.
    with Meter(
        f"downloading {image.display_name}", total=image.virtual_bytes, start=start, write=session.note
    ) as meter:
        while True:
            before = partial.stat().st_size
            try:
                request = image_pb2.DownloadImageRequest(name=image.name, offset=before, format=form)
                total = _stream(session, request, partial, meter)
                break
            except KeyboardInterrupt:
                raise Failure(
                    ExitCode.INTERRUPTED,
                    f"interrupted; {partial} keeps what has come",
                    hints=["the same command goes on from there"],
                ) from None
            except grpc.RpcError as error:
                code = code_of(error)
                idle = 0 if partial.stat().st_size > before else idle + 1
                if code is not grpc.StatusCode.UNAVAILABLE or idle >= ATTEMPTS:
                    raise from_rpc_error(error) from None
                session.note("the download broke, going on")
                time.sleep(min(2.0, 0.2 * 2**idle))
    size = partial.stat().st_size
    # No frame came: everything was there already, and only the size of a raw file is known without one.
    expected = total or (image.virtual_bytes if form == Image.FORMAT_RAW else size)
    if size != expected:
        raise Failure(ExitCode.FAILED, f"{partial} has {size} of {expected} bytes: the store sent less")
    partial.replace(file)
    return size


def _stream(session: Session, request: image_pb2.DownloadImageRequest, partial: Path, meter: Meter) -> int:
    """Size of the file as the store says, 0 when no frame came."""
    total = 0
    with partial.open("r+b") as stream:
        position = stream.seek(request.offset)
        for frame in session.gateway.images.DownloadImage(request):
            if frame.offset != position:
                raise Failure(ExitCode.FAILED, f"the store sent byte {frame.offset} where {position} was due")
            if not total:
                total = frame.total_bytes
                meter.expect(total)
            if frame.zero_bytes:
                position += frame.zero_bytes
                stream.truncate(position)
                stream.seek(position)
            else:
                stream.write(frame.data)
                position += len(frame.data)
            meter.at(position)
    return total
