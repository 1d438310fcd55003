"""Does KVM really run a guest here?

/dev/kvm may exist, open, answer every ioctl and still hang each guest at its first instructions in protected
mode: a boot sector is not proof enough. So the guest's own kernel is started for a few seconds, and has to
reach user space.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from remuda_lab.commands import find
from remuda_lab.guest import GuestImage
from remuda_lab.guest.build import MINIMUM_MEMORY_MIB

BANNER = b"remuda-guest: init"
TIME_LIMIT_SECONDS = 5.0
_DEVICE = Path("/dev/kvm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """``reason`` is a sentence for a person, whichever way it went."""

    usable: bool
    reason: str

    @property
    def domain_type(self) -> str:
        """libvirt's word for the accelerator to use."""
        return "kvm" if self.usable else "qemu"


def probe_kvm(image: GuestImage, *, limit: float = TIME_LIMIT_SECONDS) -> Probe:
    """Start a throw-away guest with KVM; usable only when it reaches user space within ``limit`` seconds."""
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        return Probe(usable=False, reason=f"{_DEVICE} is not there or not ours")
    took = boot_seconds(image, "kvm", limit=limit)
    if took is None:
        return Probe(
            usable=False, reason=f"{_DEVICE} is there, but a guest did not reach user space in {limit:g} s"
        )
    return Probe(usable=True, reason=f"a guest reached user space in {took:.1f} s")


def boot_seconds(image: GuestImage, accelerator: str, *, limit: float) -> float | None:
    """Seconds until a guest's first word from user space, without disk or firmware menu; None when it says
    none in time.
    """
    argv = [
        str(find("qemu-system-x86_64")),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", f"pc,accel={accelerator}", "-m", str(MINIMUM_MEMORY_MIB)),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd)),
        *("-append", "console=ttyS0 quiet panic=-1", "-serial", "stdio"),
    ]
    started = time.monotonic()
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        return time.monotonic() - started if _says(process, BANNER, deadline=started + limit) else None
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _says(process: subprocess.Popen[bytes], banner: bytes, *, deadline: float) -> bool:
    assert process.stdout is not None
    heard = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if not selector.select(left):
                return False
            data = os.read(process.stdout.fileno(), 4096)
            if not data:
                return False
            heard += data
            if banner in heard:
                return True
    return False
