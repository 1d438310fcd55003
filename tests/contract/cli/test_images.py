"""Image bytes over real gRPC, broken off and taken up again."""

import hashlib
import os
from pathlib import Path
from typing import Any

import grpc
import pytest
from remuda.image.v1 import image_pb2
from remuda_core.errors import RemudaError, already_exists

MIB = 1 << 20


def disk(tmp_path: Path, size: int, start: bytes = b"") -> Path:
    file = tmp_path / "Debian_12.img"
    file.write_bytes(start + os.urandom(size - len(start)))
    return file


def test_an_upload_sends_every_byte_once_and_says_format_size_and_digest(
    gateway: Any, tmp_path: Path
) -> None:
    file = disk(tmp_path, 3 * MIB + 5, start=b"QFI\xfb")
    done = gateway.run("image", "upload", str(file))
    assert done.code == 0, done.err
    assert bytes(gateway.state.uploaded) == file.read_bytes()
    made = gateway.state.asked("CreateImage")[0].image
    assert made.display_name == "debian-12"
    assert made.format == image_pb2.Image.FORMAT_QCOW2
    assert made.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert "ACTIVE" in done.out
    assert "uploading debian-12: 3.0 MiB" in done.err
    assert f"SHA-256 {made.sha256}" in done.err


def test_an_upload_that_breaks_goes_on_where_the_store_stands(gateway: Any, tmp_path: Path) -> None:
    file = disk(tmp_path, 4 * MIB)
    gateway.state.upload_breaks_after = [1, 2]
    done = gateway.run("image", "upload", str(file), "--name", "big")
    assert done.code == 0, done.err
    assert bytes(gateway.state.uploaded) == file.read_bytes()
    assert done.err.count("asking the store from where to go on") == 2


def test_an_upload_that_makes_no_way_is_given_up(gateway: Any, tmp_path: Path) -> None:
    gateway.state.upload_breaks_after = [0] * 20
    done = gateway.run("image", "upload", str(disk(tmp_path, MIB)))
    assert done.code == 5
    assert len(gateway.state.asked("GetUpload")) == 6


@pytest.mark.parametrize("state", [image_pb2.Image.STATE_UPLOADING, image_pb2.Image.STATE_PENDING])
def test_the_same_command_again_takes_up_an_unfinished_upload(
    gateway: Any, tmp_path: Path, state: "image_pb2.Image.State.ValueType"
) -> None:
    file = disk(tmp_path, 2 * MIB)
    name = f"projects/demo/images/{'f' * 8}"
    gateway.state.images[name] = image_pb2.Image(
        name=name,
        uid="f" * 8,
        display_name="debian-12",
        state=state,
        format=image_pb2.Image.FORMAT_RAW,
        file_bytes=2 * MIB,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
    )
    gateway.state.uploaded += file.read_bytes()[:MIB]
    gateway.state.refusals["CreateImage"] = already_exists(name)
    done = gateway.run("image", "upload", str(file))
    assert done.code == 0, done.err
    assert "going on with the upload" in done.err
    assert bytes(gateway.state.uploaded) == file.read_bytes()


def test_another_file_under_a_name_that_is_taken_is_refused(gateway: Any, tmp_path: Path) -> None:
    refusal: RemudaError = already_exists("projects/demo/images/debian")
    gateway.state.refusals["CreateImage"] = refusal
    done = gateway.run("image", "upload", str(disk(tmp_path, MIB)), "--name", "debian")
    assert done.code == 4
    assert "another name" in done.err
    assert not gateway.state.uploaded


def test_a_dry_run_of_an_upload_sends_nothing(gateway: Any, tmp_path: Path) -> None:
    assert gateway.run("image", "upload", str(disk(tmp_path, MIB)), "--dry-run").code == 0
    assert gateway.state.asked("CreateImage")[0].validate_only
    assert not gateway.state.asked("GetUpload")


def test_a_download_is_sparse_and_goes_on_after_a_break(gateway: Any, tmp_path: Path) -> None:
    frame = image_pb2.DownloadImageResponse
    gateway.state.disk = [
        frame(offset=0, data=b"a" * 1024, total_bytes=4096),
        frame(offset=1024, zero_bytes=1024, total_bytes=4096),
        grpc.StatusCode.UNAVAILABLE,
        frame(offset=2048, data=b"b" * 1024, total_bytes=4096),
        frame(offset=3072, zero_bytes=1024, total_bytes=4096),
    ]
    target = tmp_path / "disk.raw"
    done = gateway.run("image", "download", "debian", str(target))
    assert done.code == 0, done.err
    assert target.read_bytes() == b"a" * 1024 + bytes(1024) + b"b" * 1024 + bytes(1024)
    assert [request.offset for request in gateway.state.asked("DownloadImage")] == [0, 2048]
    assert f"SHA-256 {hashlib.sha256(target.read_bytes()).hexdigest()}" in done.err
    assert list(tmp_path.glob("*.partial")) == []


def test_a_download_as_qcow2_has_the_size_that_the_store_says_and_goes_on_after_an_interruption(
    gateway: Any, tmp_path: Path
) -> None:
    frame = image_pb2.DownloadImageResponse
    gateway.state.disk = [frame(offset=0, data=b"Q" * 1024, total_bytes=1536)]
    target = tmp_path / "disk.qcow2"
    command = ("image", "download", "debian", str(target), "--format", "qcow2", "--no-checksum")
    assert gateway.run(*command).code == 1
    gateway.state.disk = [frame(offset=1024, data=b"r" * 512, total_bytes=1536)]
    done = gateway.run(*command)
    assert done.code == 0, done.err
    assert target.read_bytes() == b"Q" * 1024 + b"r" * 512
    asked = gateway.state.asked("DownloadImage")
    assert [request.offset for request in asked] == [0, 1024]
    assert {request.format for request in asked} == {image_pb2.Image.FORMAT_QCOW2}
    assert "SHA-256" not in done.err
    # A raw file of the same image is another file, and begins anew.
    gateway.state.disk = [frame(offset=0, zero_bytes=4096, total_bytes=4096)]
    assert gateway.run("image", "download", "debian", str(tmp_path / "disk.raw")).code == 0


def test_a_download_that_comes_short_is_no_success_and_keeps_what_came(gateway: Any, tmp_path: Path) -> None:
    gateway.state.disk = [image_pb2.DownloadImageResponse(data=b"a" * 1024, total_bytes=4096)]
    target = tmp_path / "disk.raw"
    done = gateway.run("image", "download", "debian", str(target))
    assert done.code == 1
    assert "1024 of 4096 bytes" in done.err
    assert not target.exists()
    assert len(list(tmp_path.glob("*.partial"))) == 1


def test_a_download_does_not_replace_a_file_unasked(gateway: Any, tmp_path: Path) -> None:
    target = tmp_path / "disk.raw"
    target.write_bytes(b"mine")
    assert gateway.run("image", "download", "debian", str(target)).code == 2
    assert target.read_bytes() == b"mine"
