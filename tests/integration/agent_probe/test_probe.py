"""The probe's throw-away guest really reaches user space, and a kernel that does not is noticed."""

import time
from pathlib import Path

import pytest
from remuda_agent.probe.domain_type import choose_domain_type, seconds_to_user_space
from remuda_lab.guest import GuestImage
from remuda_lab.kvm import probe_kvm
from remuda_lab.testing import guest_image

__all__ = ["guest_image"]


async def test_a_kernel_reaches_our_init_where_guests_run(guest_image: GuestImage) -> None:
    assert await seconds_to_user_space(guest_image.kernel, accelerator="tcg", limit_seconds=60) is not None


async def test_a_kernel_that_never_speaks_is_given_up_in_time(guest_image: GuestImage) -> None:
    started = time.monotonic()
    assert await seconds_to_user_space(guest_image.kernel, accelerator="tcg", limit_seconds=0.3) is None
    assert time.monotonic() - started < 30


async def test_what_is_no_kernel_is_noticed_at_once(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_text("no kernel")
    assert await seconds_to_user_space(tmp_path / "vmlinuz", accelerator="tcg", limit_seconds=30) is None


async def test_the_verdict_is_the_labs(guest_image: GuestImage) -> None:
    """Found in two ways: our own init, and the guest's whole initrd."""
    chosen = await choose_domain_type(kernels=[guest_image.kernel], limit_seconds=5)
    assert chosen.proven
    assert chosen.name == probe_kvm(guest_image, limit=5).domain_type
    if not Path("/dev/kvm").exists():
        pytest.skip("no /dev/kvm: both said so without trying")
