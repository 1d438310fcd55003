"""kvm or qemu (TCG)? Found out by running a throw-away guest.

/dev/kvm may exist, open, answer every ioctl, run a boot sector, and still hang each real guest. So a kernel
is started with KVM, and user space has to say a word. The kernel is the host's own; where it may not be read,
nothing is proven and TCG is chosen, slow and sure, with a warning.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from remuda_agent.probe.banner import BANNER, initramfs

DEVICE = Path("/dev/kvm")
LIMIT_SECONDS = 10.0
_MEMORY_MIB = 256
_QEMU = "qemu-system-x86_64"


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainType:
    """``name`` is libvirt's word: kvm or qemu. ``reason`` is a sentence for a person."""

    name: str
    reason: str
    proven: bool
    """It was set by the operator, or a guest ran or failed to; False: nothing could be tried."""


async def choose_domain_type(
    *, setting: str = "", kernels: Sequence[Path] | None = None, limit_seconds: float = LIMIT_SECONDS
) -> DomainType:
    """``setting`` (kvm or qemu) overrides the probe. ``kernels``: candidates, default the host's own."""
    if setting:
        return DomainType(name=setting, reason=f"set to {setting}", proven=True)
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return DomainType(name="qemu", reason=f"{DEVICE} is not there or not ours", proven=True)
    if platform.machine() != "x86_64" or shutil.which(_QEMU) is None:
        return DomainType(name="qemu", reason="the KVM probe knows x86-64 with QEMU only", proven=False)
    kernel = next((path for path in kernels or host_kernels() if os.access(path, os.R_OK)), None)
    if kernel is None:
        return DomainType(
            name="qemu",
            reason=f"{DEVICE} is there, but no kernel below /boot to try it with; set domain_type",
            proven=False,
        )
    took = await seconds_to_user_space(kernel, accelerator="kvm", limit_seconds=limit_seconds)
    if took is None:
        return DomainType(
            name="qemu",
            reason=f"{DEVICE} is there, but {kernel} did not reach user space in {limit_seconds:g} s",
            proven=True,
        )
    return DomainType(name="kvm", reason=f"a guest reached user space in {took:.1f} s", proven=True)


def host_kernels(boot: Path = Path("/boot")) -> list[Path]:
    """The running kernel first, then the others."""
    running = boot / f"vmlinuz-{platform.release()}"
    others = sorted(boot.glob("vmlinuz*"), reverse=True) if boot.is_dir() else []
    return [running, *(path for path in others if path != running)]


async def seconds_to_user_space(kernel: Path, *, accelerator: str, limit_seconds: float) -> float | None:
    """Boot ``kernel`` with an init of our own; None when it has not spoken within ``limit_seconds``."""
    with tempfile.TemporaryDirectory(prefix="remuda-probe-") as scratch:
        initrd = Path(scratch) / "initrd.gz"
        initrd.write_bytes(initramfs())
        started = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            _QEMU,
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-machine", f"pc,accel={accelerator}", "-m", str(_MEMORY_MIB)),
            *("-kernel", str(kernel), "-initrd", str(initrd)),
            *("-append", "console=ttyS0 quiet panic=-1 rdinit=/init", "-serial", "stdio"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            assert process.stdout is not None
            async with asyncio.timeout(limit_seconds):
                # The serial line ends lines with CR LF.
                await process.stdout.readuntil(BANNER.rstrip())
            return time.monotonic() - started
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return None
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
