"""A host's own /etc and /var, as they lie in the lab's directory. Kept over a power failure, like real
disks.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from remuda_lab.commands import find
from remuda_lab.layout import LOCAL_POOL, SHARED_POOL, HostPaths, HostPlan, hosts_file
from remuda_lab.pki import Authority

# Not copied from the machine's /etc: secrets, and what a host has of its own.
_PRIVATE = shutil.ignore_patterns(
    "shadow*", "gshadow*", "ssh", "sudoers*", "pki", "libvirt", "hostname", "hosts", "machine-id", "mtab"
)

# Those of libvirt are made by Debian's package, not by libvirtd.
_VAR_DIRECTORIES = (
    *("lib/libvirt/qemu", "lib/libvirt/images", "log/libvirt/qemu", "cache/libvirt/qemu"),
    *("lib/remuda", "log/remuda", "spool", "tmp"),
)

QEMU_WRAPPER = Path(__file__).with_name("qemu_wrapper.sh")
_WRAPPER_INSIDE = "/etc/remuda-lab/qemu-system-x86_64"
_REAL_PREFIX = "/run/remuda-lab"
"""QEMU looks for its firmware and modules relative to where it was started: a prefix with links to /usr."""

LIBVIRT_TLS_PORT = 16514
LIBVIRT_TCP_PORT = 16509
MIGRATION_PORTS = (49152, 49215)
BOOT_ID_FILE = "/run/remuda-boot-id"
"""Drawn at each boot of a host: the kernel's own id is the machine's, and the same for all of them."""


def libvirtd_conf(plan: HostPlan, *, tcp: bool) -> dict[str, str | int]:
    """Settings of libvirtd.conf. TCP has no authentication, so it is off unless a lab is made with it."""
    return {
        "listen_tls": 1,
        "tls_port": str(LIBVIRT_TLS_PORT),
        "listen_tcp": int(tcp),
        "tcp_port": str(LIBVIRT_TCP_PORT),
        "auth_tls": "none",  # the certificates are the authentication
        "auth_tcp": "none",
        "auth_unix_ro": "none",  # no polkit in a host
        "auth_unix_rw": "none",
        "host_uuid": plan.uuid,  # there is no SMBIOS to take it from, and equal ones make a migration refuse
        "keepalive_interval": 2,
        "keepalive_count": 3,
        "admin_keepalive_interval": -1,
        "max_client_requests": 50,
        "log_outputs": "3:file:/var/log/libvirt/libvirtd.log",
    }


def qemu_conf(plan: HostPlan) -> dict[str, str | int | list[str]]:
    """Settings of qemu.conf: QEMU as root inside the host, TLS for migration, the address others reach."""
    address = str(plan.address)
    return {
        "user": "root",
        "group": "root",
        "dynamic_ownership": 0,
        "remember_owner": 0,  # ownership memory in xattrs breaks between hosts that share a directory
        "security_driver": "none",
        "cgroup_controllers": [],  # a host has a /sys of its own without cgroups
        "namespaces": [],
        "stdio_handler": "file",  # no virtlogd
        "migration_address": address,
        "migration_host": address,
        "migration_port_min": MIGRATION_PORTS[0],
        "migration_port_max": MIGRATION_PORTS[1],
        "migrate_tls_x509_cert_dir": "/etc/pki/qemu",
        "migrate_tls_x509_verify": 1,
        "keepalive_interval": 2,  # how a source notices within seconds that its peer is gone
        "keepalive_count": 3,
    }


def render_conf(settings: Mapping[str, str | int | list[str]]) -> str:
    """libvirt's configuration syntax; JSON's strings, numbers and lists of strings are a subset of it."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())


def install_host(
    paths: HostPaths, plan: HostPlan, hosts: tuple[HostPlan, ...], authority: Authority, *, tcp: bool
) -> None:
    """Lay down a host's /etc and /var, replacing neither what guests wrote nor the host's own state."""
    if not paths.etc.exists():
        beside = paths.root / "etc.new"
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree("/etc", beside, symlinks=True, ignore=_PRIVATE, ignore_dangling_symlinks=True)
        beside.rename(paths.etc)
    authority.issue_hypervisor(plan.name, plan.address, paths.etc)
    _write(paths.etc / "hostname", f"{plan.name}\n")
    _write(paths.etc / "machine-id", plan.uuid.replace("-", "") + "\n")
    _write(paths.etc / "hosts", hosts_file(hosts))
    _write(paths.etc / "libvirt/libvirtd.conf", render_conf(libvirtd_conf(plan, tcp=tcp)))
    _write(paths.etc / "libvirt/qemu.conf", render_conf(qemu_conf(plan)))
    wrapper = paths.etc / _WRAPPER_INSIDE.removeprefix("/etc/")
    _write(wrapper, QEMU_WRAPPER.read_text())
    wrapper.chmod(0o755)
    for directory in _VAR_DIRECTORIES:
        (paths.var / directory).mkdir(parents=True, exist_ok=True)
    (paths.var / "tmp").chmod(0o1777)
    for pool in (LOCAL_POOL, SHARED_POOL):
        if pool == LOCAL_POOL or plan.shares_pool:
            (paths.var / pool.removeprefix("/var/")).mkdir(parents=True, exist_ok=True)
    for link, target in (("run", "/run"), ("lock", "/run/lock")):
        if not (paths.var / link).is_symlink():
            (paths.var / link).symlink_to(target)


def setup_commands(paths: HostPaths, plan: HostPlan, shared_pool: Path) -> list[list[str]]:
    """What a host's pid 1 does first. Sources of binds come before the /var that could hide them."""
    commands = [
        ["hostname", plan.name],
        ["mount", "--bind", str(paths.etc), "/etc"],
    ]
    if plan.shares_pool:
        own = paths.var / SHARED_POOL.removeprefix("/var/")
        commands.append(["mount", "--bind", str(shared_pool), str(own)])
    commands += [
        ["mount", "--rbind", str(paths.var), "/var"],
        # Of this network namespace: libvirtd would look for the machine's interfaces otherwise.
        ["mount", "-t", "sysfs", "sysfs", "/sys"],
        ["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"],
        ["mkdir", "-p", "/run/lock", "/run/libvirt"],
        ["cp", "--no-preserve=all", "/proc/sys/kernel/random/uuid", BOOT_ID_FILE],
        # Terminals of its own: a serial console is a pty, and a power failure must take it along.
        ["mount", "-t", "devpts", "-o", "newinstance,ptmxmode=0666,mode=620,gid=5", "devpts", "/dev/pts"],
        ["mount", "--bind", "/dev/pts/ptmx", "/dev/ptmx"],
        *_wrap_qemu(str(find("qemu-system-x86_64").resolve())),
    ]
    return commands


def _wrap_qemu(program: str) -> list[list[str]]:
    """Put the wrapper where libvirtd finds QEMU, and QEMU where the wrapper finds it."""
    real = f"{_REAL_PREFIX}/bin/qemu-system-x86_64"
    return [
        ["mkdir", "-p", f"{_REAL_PREFIX}/bin"],
        ["ln", "-s", "/usr/share", "/usr/lib", _REAL_PREFIX],
        ["touch", real],
        ["mount", "--bind", program, real],
        ["mount", "--bind", _WRAPPER_INSIDE, program],
    ]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Links of the machine's /etc (resolv.conf and the like) must not be written through.
    if path.is_symlink():
        path.unlink()
    path.write_text(text)
