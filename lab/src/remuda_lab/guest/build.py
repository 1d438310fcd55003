"""Builds the guest once per set of inputs and keeps it in a cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from remuda_lab.commands import find
from remuda_lab.guest.disk import build_disk, to_qcow2
from remuda_lab.guest.initrd import FILES, build_initrd, kernel_version
from remuda_lab.guest.packages import fetch_and_unpack, resolve_packages

MINIMUM_MEMORY_MIB = 96
"""The smallest memory the guest boots with; 80 MiB panic while the initrd is unpacked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestImage:
    """A built guest. The disk boots by itself; kernel and initrd are the same ones, for direct boot."""

    directory: Path

    @property
    def qcow2(self) -> Path:
        return self.directory / "guest.qcow2"

    @property
    def raw(self) -> Path:
        return self.directory / "guest.raw"

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd.gz"


def cache_directory() -> Path:
    """``$XDG_CACHE_HOME/remuda``, else ``~/.cache/remuda``, else ``.lab/cache`` where nobody has a home."""
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "remuda"
    if os.environ.get("HOME"):
        return Path.home() / ".cache" / "remuda"
    return Path.cwd() / ".lab" / "cache"


def ensure_guest_image(
    cache: Path | None = None, *, tell: Callable[[str], None] = lambda _: None
) -> GuestImage:
    """Return the guest for the inputs of today, building it when the cache has none.

    Inputs are the builder's own files, busybox, and the versions of kernel and guest agent that apt offers.
    ``tell`` gets a line before each slow thing. Raises LabError when a tool or a package is missing.
    """
    root = cache_directory() if cache is None else cache
    root.mkdir(parents=True, exist_ok=True)
    kernel, agent = resolve_packages()
    target = root / f"guest-{content_key(kernel.file_name, agent.file_name)}"
    with _locked(root / "guest.lock"):
        if target.is_dir():
            return GuestImage(directory=target)
        with tempfile.TemporaryDirectory(prefix="guest-build-", dir=root) as scratch:
            work = Path(scratch)
            for package, name in ((kernel, "kernel"), (agent, "agent")):
                tell(f"downloading {package.file_name}")
                fetch_and_unpack(package, downloads=work / "downloads", into=work / name)
            tell("building the guest image")
            _assemble(work)
            # One rename publishes it, so a killed build leaves nothing that looks finished.
            (work / "out").rename(target)
    return GuestImage(directory=target)


def content_key(kernel_file: str, agent_file: str) -> str:
    """A short digest of everything that decides what the image will be."""
    digest = hashlib.sha256()
    for name in (kernel_file, agent_file):
        digest.update(name.encode() + b"\0")
    sources = sorted(
        [*Path(__file__).parent.glob("*.py"), *(path for path in FILES.iterdir() if path.is_file())]
    )
    for path in [*sources, find("busybox")]:
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _assemble(work: Path) -> None:
    out = work / "out"
    out.mkdir()
    image = GuestImage(directory=out)
    version = kernel_version(work / "kernel")
    shutil.copyfile(work / "kernel" / "boot" / f"vmlinuz-{version}", image.kernel)
    build_initrd(
        kernel_tree=work / "kernel",
        guest_agent=work / "agent" / "usr/sbin/qemu-ga",
        root=work / "root",
        output=image.initrd,
    )
    build_disk(kernel=image.kernel, initrd=image.initrd, work=work, output=image.raw)
    to_qcow2(image.raw, image.qcow2)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
