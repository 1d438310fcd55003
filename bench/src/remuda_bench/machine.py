"""What a bench ran on, for its report."""

from __future__ import annotations

import os
import platform

from remuda_lab.mesh import Mesh


def bare() -> dict[str, str]:
    """Of the machine itself."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processors": str(os.cpu_count()),
        "memory": f"{memory / (1 << 30):.0f} GiB",
        "kernel": platform.release(),
        "Python": platform.python_version(),
    }


def with_guests(mesh: Mesh, host: str) -> dict[str, str]:
    """And of what its guests run on, as ``host`` says it."""
    versions = mesh.lab.host(host).virsh("version").splitlines()
    running = {line.partition(":")[0]: line.partition(":")[2].strip() for line in versions}
    found = bare()
    python = found.pop("Python")
    return {
        **found,
        "libvirt": running.get("Using library", "unknown").removeprefix("libvirt "),
        "QEMU": running.get("Running hypervisor", "unknown").removeprefix("QEMU "),
        "guests run under": "KVM" if mesh.host(host).inventory.domain_type == "kvm" else "TCG",
        "Python": python,
    }
