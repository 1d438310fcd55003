"""Conditions of a move, broken for real on one host and mended again, whatever happens in between."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from remuda.compute.v1 import host_pb2
from remuda.compute.v1.host_pb2_grpc import HostServiceStub
from remuda_lab.cluster.settings import BRIDGE
from remuda_lab.cluster.toml_text import Value
from remuda_lab.layout import LOCAL_POOL, SHARED_POOL
from remuda_lab.mesh import Guest, Mesh
from remuda_lab.waiting import wait_for

MIB = 1 << 20
UID_FILE = ".remuda-pool"
ATTACHED = "/var/tmp/attached.xml"


@contextmanager
def forgetting(mesh: Mesh, host: str, *, name: str) -> Iterator[None]:
    """The host's /etc/hosts does not know `name` any more."""
    file = mesh.lab.paths.host(host).etc / "hosts"
    before = file.read_text()
    file.write_text("".join(line for line in before.splitlines(keepends=True) if name not in line.split()))
    try:
        yield
    finally:
        file.write_text(before)


@contextmanager
def firewalled(mesh: Mesh, host: str, *, ports: str, politely: bool) -> Iterator[None]:
    """Nobody connects to these TCP ports of the host: they are refused `politely`, or not answered."""
    how = ["REJECT", "--reject-with", "tcp-reset"] if politely else ["DROP"]
    rule = ["INPUT", "-p", "tcp", "--dport", ports, "-j", *how]
    mesh.lab.host(host).run(["iptables", "-A", *rule])
    try:
        yield
    finally:
        mesh.lab.host(host).run(["iptables", "-D", *rule])


@contextmanager
def without_bridge(mesh: Mesh, host: str) -> Iterator[None]:
    """The bridge that the agent's configuration names is called otherwise. For a host without guests."""
    link = ["ip", "link", "set"]
    mesh.lab.host(host).run([*link, BRIDGE, "name", "elsewhere"])
    try:
        yield
    finally:
        mesh.lab.host(host).run([*link, "elsewhere", "name", BRIDGE])


@contextmanager
def full_pool(mesh: Mesh, host: str, *, pool: str) -> Iterator[None]:
    """A file system of its own lies at the pool, with the pool's uid and not a byte to spare."""
    with mounted(mesh, host, pool=pool, what=["-t", "tmpfs", "-o", "size=160m", "tmpfs"]) as path:
        # dd ends with an error when the device is full, and that is what is wanted.
        fill = f"dd if=/dev/zero of={path}/ballast bs=1M 2>/dev/null; dd if=/dev/zero of={path}/rest bs=4k"
        mesh.lab.host(host).run(["sh", "-c", f"{fill} 2>/dev/null; true"])
        yield


@contextmanager
def another_pool(mesh: Mesh, host: str, *, pool: str) -> Iterator[None]:
    """Something else is mounted at the pool's place, and says that it is the pool."""
    copy = "/var/tmp/a-copy"
    mesh.lab.host(host).run(["mkdir", "-p", copy])
    with mounted(mesh, host, pool=pool, what=["--bind", copy]):
        yield
    mesh.lab.host(host).run(["rm", "-r", copy])


@contextmanager
def mounted(mesh: Mesh, host: str, *, pool: str, what: list[str]) -> Iterator[str]:
    path = {"local": LOCAL_POOL, "shared": SHARED_POOL}[pool]
    inside = mesh.lab.host(host)
    uid = inside.run(["cat", f"{path}/{UID_FILE}"])
    inside.run(["mount", *what, path])
    try:
        inside.run(["mkdir", "-p", f"{path}/instances", f"{path}/base"])
        inside.run(["tee", f"{path}/{UID_FILE}"], stdin=uid)
        yield path
    finally:
        # The agent may be looking into it at this moment.
        inside.run(["umount", "--lazy", path])


@contextmanager
def telling(mesh: Mesh, **facts: dict[str, Value]) -> Iterator[None]:
    """The hosts tell these facts of themselves, through --facts-override."""
    try:
        for host, told in facts.items():
            mesh.cluster.override_facts(host, told)
        mesh.wait_hosts_up()
        wait_for("they admit it", lambda: all(mesh.host(host).warnings for host in facts), timeout=60)
        yield
    finally:
        for host in facts:
            mesh.cluster.override_facts(host, {})
        mesh.wait_hosts_up()
        wait_for(
            "they tell the truth", lambda: not any(mesh.host(host).warnings for host in facts), timeout=60
        )


@contextmanager
def cordoned(mesh: Mesh, *hosts: str) -> Iterator[None]:
    """Nothing new is placed on these hosts."""
    service = HostServiceStub(mesh.channel)
    names = [f"hosts/{mesh.host_uuid(host)}" for host in hosts]
    try:
        for name in names:
            service.CordonHost(
                host_pb2.CordonHostRequest(name=name, request_id=str(uuid.uuid4())), timeout=20
            )
        yield
    finally:
        for name in names:
            request = host_pb2.UncordonHostRequest(name=name, request_id=str(uuid.uuid4()))
            service.UncordonHost(request, timeout=20)


@contextmanager
def given_away(mesh: Mesh, host: str, *, leaving_mib: int) -> Iterator[None]:
    """An instance that is stopped holds all memory of the host but so much, and all of its processors: a
    machine may get more memory while it runs.
    """
    remuda = mesh.cli()
    wait_for(f"{host} has room", lambda: has_room(mesh, host), timeout=90)
    has = mesh.host(host).inventory
    size = ["--vcpus", str(has.vcpus), "--memory", str(has.memory_mib - leaving_mib)]
    remuda.run("flavor", "create", "huge", *size)
    try:
        what = ["--flavor", "huge", "--image", "guest", "--network", "guests", "--host", host]
        remuda.run("instance", "create", "hog", *what)
        remuda.run("instance", "stop", "hog", "--force")
        yield
    finally:
        remuda.run("instance", "delete", "hog", "--yes")
        remuda.run("flavor", "delete", "huge", "--yes")


def has_room(mesh: Mesh, host: str) -> bool:
    """For a small guest, as placement sees it: it hears of free space half a minute late."""
    request = host_pb2.ExplainPlacementRequest(flavor="flavors/tiny", host=f"hosts/{mesh.host_uuid(host)}")
    explained = HostServiceStub(mesh.channel).ExplainPlacement(request, timeout=20)
    return any(one.eligible for one in explained.hosts if one.display_name == host)


@contextmanager
def attached(mesh: Mesh, guest: Guest, *devices: str) -> Iterator[None]:
    """Devices (XML) that are plugged into the running guest, and unplugged in reverse order."""
    inside = mesh.lab.host(guest.host())
    plugged: list[str] = []
    try:
        for device in devices:
            inside.run(["tee", ATTACHED], stdin=device)
            inside.virsh("attach-device", guest.uid, ATTACHED, "--live")
            plugged.append(device)
        yield
    finally:
        for device in reversed(plugged):
            inside.run(["tee", ATTACHED], stdin=device)
            inside.virsh("detach-device", guest.uid, ATTACHED, "--live")
        inside.run(["rm", "-f", ATTACHED])


def iso_config_drive(mesh: Mesh, guest: Guest) -> tuple[str, str]:
    """A CD-ROM with the guest's config drive, beside its disk on local storage."""
    directory = f"{LOCAL_POOL}/instances/{guest.uid}"
    controller = "<controller type='scsi' index='0' model='virtio-scsi'/>"
    disk = (
        "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/>"
        f"<source file='{directory}/config.iso'/><target dev='sda' bus='scsi'/><readonly/></disk>"
    )
    mesh.lab.host(guest.host()).run(["cp", f"{directory}/config.img", f"{directory}/config.iso"])
    return controller, disk


def host_network_card(mac: str = "52:54:00:00:00:99") -> str:
    """A macvtap on the host's own network card: of the pass-through that needs no hardware of its own."""
    return (
        f"<interface type='direct'><mac address='{mac}'/><source dev='mgmt' mode='bridge'/>"
        "<model type='virtio'/></interface>"
    )


@contextmanager
def writing_memory(mesh: Mesh, guest: Guest) -> Iterator[None]:
    """The guest rewrites 8 MiB of its memory again and again. It must not be moved meanwhile: TCG may lose
    writes of such a guest.
    """
    loop = "while :; do dd if=/dev/urandom of=/tmp/busy bs=64k count=128 conv=notrunc; done"
    started = _agent(mesh, guest, "guest-exec", path="/bin/busybox", arg=["sh", "-c", loop])
    try:
        yield
    finally:
        pid = started["pid"]
        _agent(mesh, guest, "guest-exec", path="/bin/busybox", arg=["kill", "-9", str(pid)])
        wait_for(
            "the writer has ended",
            lambda: _agent(mesh, guest, "guest-exec-status", pid=pid)["exited"],
            timeout=60,
        )
        _agent(mesh, guest, "guest-exec", path="/bin/busybox", arg=["rm", "-f", "/tmp/busy"])


def _agent(mesh: Mesh, guest: Guest, command: str, **arguments: object) -> dict[str, int]:
    """A command of the guest's own agent."""
    text = json.dumps({"execute": command, "arguments": arguments})
    answer: dict[str, dict[str, int]] = json.loads(
        mesh.lab.host(guest.host()).virsh("qemu-agent-command", guest.uid, text)
    )
    return answer["return"]


def listening(mesh: Mesh, host: str, ports: tuple[int, int]) -> list[str]:
    """Sockets of the host that listen in the range."""
    lines = mesh.lab.host(host).run(["ss", "-Hltn"]).splitlines()
    return [line for line in lines if ports[0] <= int(line.split()[3].rpartition(":")[2]) <= ports[1]]


def probe_files(mesh: Mesh, host: str) -> list[Path]:
    """What probes have left on a host: files in its pools, and the agent's notes of them."""
    paths = mesh.lab.paths.host(host)
    pools = (paths.local_pool, mesh.lab.paths.shared_pool)
    found = [path for pool in pools for path in pool.glob(".remuda-probe-*")]
    notes = paths.state / "probes"
    return found + (list(notes.iterdir()) if notes.is_dir() else [])
