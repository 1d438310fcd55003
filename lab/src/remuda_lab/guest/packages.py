"""Debian packages that the guest needs but the machine must not get: downloaded and unpacked, never
installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from remuda_lab.commands import run
from remuda_lab.errors import CommandFailed, LabError

KERNEL_META_PACKAGE = "linux-image-cloud-amd64"
GUEST_AGENT_PACKAGE = "qemu-guest-agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One version of a package as apt would download it."""

    name: str
    file_name: str
    """Carries name, version and architecture: the package's part of the content key."""


def resolve_packages() -> tuple[Package, Package]:
    """The kernel package behind Debian's meta package, and qemu-guest-agent. Needs apt's lists, not the
    network.

    Raises LabError when apt knows them not.
    """
    kernel = next(
        (
            word
            for line in _apt("apt-cache", "depends", KERNEL_META_PACKAGE).splitlines()
            for word in line.split()
            if word.startswith("linux-image-") and word != KERNEL_META_PACKAGE
        ),
        None,
    )
    if kernel is None:
        raise LabError(f"apt shows no kernel behind {KERNEL_META_PACKAGE}; run `apt-get update` as root")
    offered = _apt("apt-get", "download", "--print-uris", kernel, GUEST_AGENT_PACKAGE)
    return _offered(offered, kernel), _offered(offered, GUEST_AGENT_PACKAGE)


def _offered(uris: str, name: str) -> Package:
    # 'URI' FILE SIZE DIGEST, in an order of apt's own
    for line in uris.splitlines():
        fields = line.split()
        if line.startswith("'") and len(fields) >= 2 and fields[1].startswith(f"{name}_"):
            return Package(name=name, file_name=unquote(fields[1]))
    raise LabError(f"apt knows no package {name}; run `apt-get update` as root")


def fetch_and_unpack(package: Package, *, downloads: Path, into: Path) -> None:
    """Download one package and unpack it below ``into``. Raises LabError when the archive cannot be
    reached.
    """
    downloads.mkdir(parents=True, exist_ok=True)
    try:
        run(["apt-get", "download", "-qq", package.name], cwd=downloads, timeout=300)
    except CommandFailed as error:
        raise LabError(
            f"{error}\nIf apt's lists are old, run `apt-get update` as root and try again."
        ) from error
    archives = sorted(downloads.glob(f"{package.name}_*.deb"))
    if not archives:
        raise LabError(f"`apt-get download {package.name}` left no archive in {downloads}")
    into.mkdir(parents=True, exist_ok=True)
    run(["dpkg", "-x", str(archives[-1]), str(into)], timeout=120)


def _apt(*argv: str) -> str:
    try:
        return run(argv, timeout=60)
    except CommandFailed as error:
        raise LabError(
            f"{error}\nThe guest's packages are not in apt's lists: run `apt-get update` as root."
        ) from error
