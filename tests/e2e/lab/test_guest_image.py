"""The guest image and the KVM probe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from remuda_lab.commands import run
from remuda_lab.guest import GuestImage, ensure_guest_image
from remuda_lab.kvm import boot_seconds, probe_kvm


def test_a_second_build_is_taken_from_the_cache(guest_image: GuestImage) -> None:
    lines: list[str] = []
    assert ensure_guest_image(guest_image.directory.parent, tell=lines.append) == guest_image
    assert lines == []


def test_both_formats_hold_the_same_bootable_disk(guest_image: GuestImage) -> None:
    run(
        [
            "qemu-img",
            "compare",
            "-q",
            "-f",
            "raw",
            "-F",
            "qcow2",
            str(guest_image.raw),
            str(guest_image.qcow2),
        ]
    )
    info = json.loads(run(["qemu-img", "info", "--output=json", str(guest_image.qcow2)]))
    assert info["format"] == "qcow2"
    assert info["virtual-size"] == guest_image.raw.stat().st_size
    assert "backing-filename" not in info
    assert guest_image.raw.read_bytes()[510:512] == b"\x55\xaa"


@pytest.mark.slow
def test_a_throw_away_guest_reaches_user_space_under_emulation(guest_image: GuestImage) -> None:
    took = boot_seconds(guest_image, "tcg", limit=60)
    assert took is not None
    assert took > 0


def test_a_guest_that_cannot_start_is_no_guest(guest_image: GuestImage) -> None:
    assert boot_seconds(guest_image, "no-such-accelerator", limit=10) is None


def test_a_guest_that_is_too_slow_is_given_up(guest_image: GuestImage) -> None:
    assert boot_seconds(guest_image, "tcg", limit=0.05) is None


@pytest.mark.slow
def test_the_probe_says_what_it_saw_and_what_to_use(guest_image: GuestImage) -> None:
    probe = probe_kvm(guest_image)
    assert probe.domain_type == ("kvm" if probe.usable else "qemu")
    assert probe.reason
    assert (
        probe.usable
        or not Path("/dev/kvm").exists()
        or "user space" in probe.reason
        or "ours" in probe.reason
    )
