"""remuda image: upload, look, download, delete; the rest is in image_sharing."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from remuda_cli.commands.arguments import EtagOption, ImageArg, OwnImageArg, RequestIdOption, request_id
from remuda_cli.commands.image_sharing import (
    ShareWithOption,
    VisibilityOption,
    projects_of,
    visibility_of,
)
from remuda_cli.failure import usage
from remuda_cli.session import Session
from remuda_cli.verb import verb

app = typer.Typer(no_args_is_help=True)


class DiskFormat(StrEnum):
    AUTO = "auto"
    RAW = "raw"
    QCOW2 = "qcow2"


class FileFormat(StrEnum):
    RAW = "raw"
    QCOW2 = "qcow2"


def upload(
    session: Session,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A raw or qcow2 disk.")],
    name: Annotated[
        str, typer.Option("--name", help="A DNS label with dots; else from the file's name.")
    ] = "",
    disk_format: Annotated[
        DiskFormat, typer.Option("--format", help="Seen from the file's beginning.")
    ] = DiskFormat.AUTO,
    min_disk: Annotated[
        int, typer.Option("--min-disk", min=0, metavar="GIB", help="Smallest disk it fits on.")
    ] = 0,
    min_memory: Annotated[int, typer.Option("--min-memory", min=0, metavar="MIB", help="It boots with.")] = 0,
    architecture: Annotated[str, typer.Option("--architecture", help="Empty: any.")] = "",
    guest_agent: Annotated[bool, typer.Option("--guest-agent", help="It runs qemu-guest-agent.")] = False,
    rescue: Annotated[
        bool, typer.Option("--rescue", help="It is meant for rescuing other instances.")
    ] = False,
    visibility: VisibilityOption = None,
    share_with: ShareWithOption = None,
    checksum: Annotated[
        bool,
        typer.Option("--checksum/--no-checksum", help="Hash the file first, so that the store can check it."),
    ] = True,
    request: RequestIdOption = "",
) -> None:
    """Upload a disk image. The same command again goes on where a broken upload stands."""
    from remuda.image.v1 import image_pb2

    from remuda_cli.transfer import upload as uploading

    if not file.is_file():
        raise usage(f"{file} is no file")
    image = image_pb2.Image(
        display_name=name or uploading.name_from(file),
        format=uploading.format_of(file, disk_format.value),
        file_bytes=file.stat().st_size,
        min_disk_gib=min_disk,
        min_memory_mib=min_memory,
        architecture=architecture,
        guest_agent=guest_agent,
        rescue=rescue,
        visibility=visibility_of(visibility, share_with) or image_pb2.Image.VISIBILITY_UNSPECIFIED,
        shared_with=projects_of(share_with),
    )
    if checksum:
        image.sha256 = uploading.sha256_of(file)
        session.note(f"SHA-256 {image.sha256}")
    record = uploading.record_for(session, image, request_id(request))
    if session.dry_run:
        session.note("dry run: every check passed, nothing was done")
        return
    session.show(uploading.send(session, file, record))


verb(app, "create", mutates=True)(upload)
verb(app, "upload", mutates=True)(upload)


@verb(app, "list")
def list_(
    session: Session,
    visible: Annotated[
        bool, typer.Option("--visible", help="Also those of other projects that this one may use.")
    ] = False,
) -> None:
    """List images."""
    from remuda.image.v1 import image_pb2

    session.show_all(image_pb2.Image, list(session.gateway.list_images(visible=visible)))


@verb(app, "show")
def show(session: Session, image: ImageArg) -> None:
    """Show one image."""
    from remuda_cli import resolve

    session.show(resolve.image(session.gateway, image))


@verb(app, "download")
def download(
    session: Session,
    image: ImageArg,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the disk goes; raw ones are sparse.")],
    disk_format: Annotated[FileFormat, typer.Option("--format", help="Of the file.")] = FileFormat.RAW,
    checksum: Annotated[
        bool, typer.Option("--checksum/--no-checksum", help="Print the SHA-256 of the file.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE when it exists.")] = False,
) -> None:
    """Download the virtual disk. The same command again goes on where a broken download stands."""
    from remuda_cli import resolve
    from remuda_cli.transfer import upload as uploading
    from remuda_cli.transfer.download import receive

    if file.exists() and not force:
        raise usage(f"{file} exists", "the same command with --force")
    found = resolve.image(session.gateway, image)
    count = receive(session, found, file, uploading.format_of(file, disk_format.value))
    session.note(f"{found.display_name}: {count} bytes in {file}")
    if checksum:
        session.note(f"SHA-256 {uploading.sha256_of(file)}")


@verb(app, "delete", mutates=True, destroys=True)
def delete(
    session: Session, image: OwnImageArg, etag: EtagOption = "", request: RequestIdOption = ""
) -> None:
    """Remove an image that no instance is based on."""
    from remuda.image.v1 import image_pb2

    from remuda_cli import resolve

    gateway = session.gateway
    found = resolve.own_image(gateway, image)
    session.confirm(f"Delete image {found.display_name} ({found.uid})?")
    gateway.call(
        gateway.images.DeleteImage,
        image_pb2.DeleteImageRequest(
            name=found.name, etag=etag, request_id=request_id(request), validate_only=session.dry_run
        ),
    )
    session.note(f"image {found.display_name}: {'would be removed' if session.dry_run else 'removed'}")
