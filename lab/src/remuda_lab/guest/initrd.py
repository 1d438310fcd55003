"""The guest's whole user space: busybox, a handful of kernel modules, qemu-guest-agent, our init."""

from __future__ import annotations

import shutil
from pathlib import Path

from remuda_lab.commands import find, run
from remuda_lab.errors import LabError

FILES = Path(__file__).parent / "files"

# Debian's cloud kernel has no AHCI and no USB: virtio, and IDE for old machine types, is all there is.
MODULES = (
    *("virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio_balloon", "virtio_rng"),
    *("virtio_scsi", "ata_piix", "sr_mod", "sd_mod"),
    # The vfat driver asks for these when it mounts.
    *("nls_cp437", "nls_ascii", "nls_utf8"),
    *("vfat", "isofs", "ext4"),
    # Together they make the ACPI power button an input event.
    *("evdev", "button"),
)


def kernel_version(kernel_tree: Path) -> str:
    """The one kernel version in an unpacked package. Raises LabError when there is none."""
    versions = sorted(path.name for path in (kernel_tree / "lib/modules").glob("*"))
    if not versions:
        raise LabError(f"no kernel modules below {kernel_tree}")
    return versions[-1]


def libraries_of(program: Path) -> list[Path]:
    """Every shared library a program loads, its loader included, as found on this machine.

    Raises LabError when one is missing (QEMU depends on the same set, so QEMU is not installed then).
    """
    found = []
    for line in run(["ldd", str(program)]).splitlines():
        words = line.split()
        if "not found" in line:
            raise LabError(
                f"{program.name} needs {words[0]}, which is not installed; run lab/install-debian.sh as root"
            )
        path = next((word for word in words if word.startswith("/")), None)
        if path is not None:
            found.append(Path(path))
    return found


def build_initrd(*, kernel_tree: Path, guest_agent: Path, root: Path, output: Path) -> None:
    """Lay the user space out below ``root`` and pack it to ``output`` (a gzipped newc archive)."""
    for name in ("bin", "lib/modules", "proc", "sys", "dev", "usr/sbin", "etc", "www/cgi-bin"):
        (root / name).mkdir(parents=True, exist_ok=True)
    shutil.copy2(find("busybox"), root / "bin/busybox")
    (root / "bin/sh").symlink_to("busybox")
    _install(FILES / "init", root / "init", mode=0o755)
    _install(FILES / "state.cgi", root / "www/cgi-bin/state", mode=0o755)
    _install(FILES / "verify.cgi", root / "www/cgi-bin/verify", mode=0o755)
    _install(FILES / "json.awk", root / "lib/json.awk", mode=0o644)
    _install(FILES / "networks.awk", root / "lib/networks.awk", mode=0o644)
    _install_modules(kernel_tree, root / "lib/modules")
    _install(guest_agent, root / "usr/sbin/qemu-ga", mode=0o755)
    for library in libraries_of(guest_agent):
        _install(library, root / library.relative_to("/"), mode=0o755)
    pack = (
        "find . -mindepth 1 -print0 | LC_ALL=C sort -z"
        " | cpio --null --create --format=newc --quiet --reproducible --owner=0:0"
        ' | gzip -9n > "$1"'
    )
    run(["bash", "-o", "pipefail", "-c", pack, "pack", str(output)], cwd=root)


def _install_modules(kernel_tree: Path, target: Path) -> None:
    version = kernel_version(kernel_tree)
    # The package makes modules.dep when it is installed; here it is only unpacked.
    run(["depmod", "-b", str(kernel_tree), version])
    order: list[str] = []
    for module in MODULES:
        shown = run(["modprobe", "-d", str(kernel_tree), "-S", version, "--show-depends", module])
        for line in shown.splitlines():
            # "insmod PATH" or "builtin NAME"
            verb, path = line.split()[:2]
            if verb == "insmod" and Path(path).name not in order:
                _install(Path(path), target / Path(path).name, mode=0o644)
                order.append(Path(path).name)
    (target / "order").write_text("".join(f"{name}\n" for name in order))


def _install(source: Path, target: Path, *, mode: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)
