"""What is refused by the first bytes of a file, and by what qemu-img says about it."""

import struct
from collections.abc import Mapping
from typing import Any

import pytest
from remuda_image_store.inspection import Refused, check_head, check_info, check_report, check_size

GOOD: Mapping[str, Any] = {"format": "qcow2", "virtual-size": 1 << 20, "format-specific": {"data": {}}}


def head(*, version: int = 3, backing: int = 0, crypt: int = 0, incompatible: int = 0) -> bytes:
    """A qcow2 header, see docs/interop/qcow2.txt of QEMU."""
    fixed = struct.pack(">4sIQIIQI", b"QFI\xfb", version, backing, 0, 16, 1 << 20, crypt)
    return (fixed.ljust(72, b"\0") + struct.pack(">Q", incompatible)).ljust(512, b"\0")


def test_a_plain_header_is_accepted_in_both_formats() -> None:
    check_head(head(), qcow2=True)
    check_head(head(version=2), qcow2=True)
    check_head(bytes(512), qcow2=False)
    check_head(b"\xeb\x63\x90 a boot sector", qcow2=False)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (head(backing=512), "backing file"),
        (head(crypt=2), "encrypted"),
        (head(incompatible=4), "another file"),
        (head(version=9), "version 9"),
        (head()[:60], "truncated"),
        (bytes(512), "raw, not qcow2"),
        (b"KDMV".ljust(512, b"\0"), "VMDK, not qcow2"),
    ],
)
def test_a_qcow2_header_that_names_other_files_or_is_none_is_refused(bad: bytes, why: str) -> None:
    with pytest.raises(Refused, match=why):
        check_head(bad, qcow2=True)


@pytest.mark.parametrize(
    ("first", "name"),
    [
        (head(), "qcow2"),
        (b"QED\0", "QED"),
        (b"# Disk DescriptorFile\n", "VMDK"),
        (b"vhdxfile", "VHDX"),
        (b"conectix", "VHD"),
        (bytes(64) + b"\x7f\x10\xda\xbe", "VDI"),
        (b"LUKS\xba\xbe", "LUKS"),
    ],
)
def test_a_file_of_another_format_is_not_taken_for_raw(first: bytes, name: str) -> None:
    with pytest.raises(Refused, match=f"{name}, not raw"):
        check_head(first.ljust(512, b"\0"), qcow2=False)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"format": "raw"}, "not qcow2"),
        ({"backing-filename": "/etc/passwd"}, "backing file"),
        ({"full-backing-filename": "/etc/passwd"}, "backing file"),
        ({"encrypted": True}, "encrypted"),
        ({"format-specific": {"data": {"encrypt": {"format": "luks"}}}}, "encrypted"),
        ({"format-specific": {"data": {"data-file": "/etc/passwd"}}}, "another file"),
        ({"format-specific": {"data": {"corrupt": True}}}, "corrupt"),
        ({"virtual-size": None}, "unknown"),
    ],
)
def test_what_qemu_img_knows_about_the_file_can_refuse_it(change: dict[str, Any], why: str) -> None:
    assert check_info(GOOD) == 1 << 20
    with pytest.raises(Refused, match=why):
        check_info({**GOOD, **change})


@pytest.mark.parametrize(
    ("size", "why"), [(0, "truncated"), (511, "truncated"), (513, "truncated"), (1 << 62, "larger")]
)
def test_a_disk_of_an_impossible_size_is_refused(size: int, why: str) -> None:
    assert check_size(1 << 40, 1 << 40) == 1 << 40
    with pytest.raises(Refused, match=why):
        check_size(size, 1 << 40)


def test_corruption_is_refused_and_leaks_are_not() -> None:
    check_report({"leaks": 3, "check-errors": 0})
    with pytest.raises(Refused, match="truncated or corrupt"):
        check_report({"corruptions": 1, "check-errors": 0})
    with pytest.raises(Refused, match="truncated or corrupt"):
        check_report({"check-errors": 1})
