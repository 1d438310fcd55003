"""What qemu-img tells of the extents of a disk: touched since it was made, or changed since a checkpoint.

Format: "map" in https://www.qemu.org/docs/master/tools/qemu-img.html; qcow2 is never parsed here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

from remuda_core.errors import Reason, RemudaError

from remuda_agent.hypervisor.backups import BITMAP, DISK
from remuda_agent.snapshots.planning import Span


async def touched(disk: Path) -> list[Span]:
    """Whatever the overlay itself holds, of zeros too. Raises STEP_FAILED.

    A QEMU may have it open. Its tables in memory are newer than those in the file, until the guest flushes or
    is stopped; see `Guard.settle`. What is allocated while this looks may or may not be told.
    """
    extents = await _map("--force-share", "--format=qcow2", str(disk))
    return [_span(extent) for extent in extents if extent["depth"] == 0 and extent.get("present", True)]


async def changed(socket: Path) -> list[Span]:
    """What has changed since the checkpoint that the running backup was asked for. Raises STEP_FAILED."""
    options = [
        "driver=nbd",
        "server.type=unix",
        f"server.path={str(socket).replace(',', ',,')}",
        f"export={DISK}",
        # With it the bitmap is shown in the place of the allocation: "no data" means dirty.
        f"x-dirty-bitmap=qemu:dirty-bitmap:{BITMAP}",
    ]
    extents = await _map("--image-opts", ",".join(options))
    return [_span(extent) for extent in extents if not extent["data"]]


def _span(extent: dict[str, Any]) -> Span:
    return Span(int(extent["start"]), int(extent["length"]))


async def _map(*arguments: str) -> list[dict[str, Any]]:
    program = shutil.which("qemu-img")
    if program is None:
        raise RemudaError(Reason.STEP_FAILED, "qemu-img is not installed on this host")
    process = await asyncio.create_subprocess_exec(
        program,
        "map",
        "--output=json",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, words = await process.communicate()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        said = words.decode(errors="replace").strip() or f"exit status {process.returncode}"
        raise RemudaError(Reason.STEP_FAILED, f"qemu-img map failed: {said}")
    # In a thread: a scattered disk of a terabyte has millions of extents.
    extents: list[dict[str, Any]] = await asyncio.to_thread(json.loads, output)
    return extents
