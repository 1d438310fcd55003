"""``remuda-lab demo``: the whole mesh from nothing to nothing, and two guests that move without stopping."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from remuda_lab.cluster import Cluster, addresses, settings
from remuda_lab.cluster.cli import Cli
from remuda_lab.demo_proof import Before, check_moved
from remuda_lab.errors import LabError
from remuda_lab.fabric_http import query
from remuda_lab.guest import ensure_guest_image
from remuda_lab.lab import Lab, check_machine
from remuda_lab.layout import lab_paths
from remuda_lab.mesh import IMAGE, Guest, Mesh
from remuda_lab.pinger import Pinger
from remuda_lab.sweep import machine_interfaces
from remuda_lab.tether import tether
from remuda_lab.waiting import wait_for

LAB = "demo"
BANDWIDTH_MIB_S = 16
"""A cap on the first move, so that there is time to see it."""

_METRICS = (
    ("operations that ended well", 'sum(remuda_operations_ended_total{result="done"})'),
    ("migrations that ended well", 'sum(remuda_migrations_total{result="done"})'),
    ("downtime, all migrations, seconds", "sum(remuda_migration_downtime_seconds_sum)"),
    ("running instances", 'sum(remuda_instances{service="scheduler",state="running"})'),
    ("hosts that are up", 'sum(remuda_host_state{state="up"})'),
    ("memory allocated to guests, bytes", 'sum(remuda_host_memory_bytes{kind="allocated"})'),
    ("image bytes fetched by hosts", 'sum(remuda_image_transfer_bytes_total{kind="fetched"})'),
    ("rpcs handled by the api", 'sum(grpc_server_handled_total{service="api"})'),
    ("epoch of the leader", 'max(remuda_leader_epoch{service="scheduler"})'),
)


@dataclass(slots=True)
class Narrator:
    """Sections with the time since the start; the details come from the commands themselves."""

    started: float = field(default_factory=time.monotonic)
    colour: bool = field(default_factory=sys.stdout.isatty)

    def section(self, title: str) -> None:
        line = f"== {title}  [{self.elapsed():.0f} s]"
        print(f"\n\033[1m{line}\033[0m" if self.colour else f"\n{line}", flush=True)

    def say(self, text: str) -> None:
        print(f"   {text}", flush=True)

    def run(self, remuda: Cli, *words: str, shown: Sequence[str] = ()) -> None:
        """A command and what it prints, as it comes. ``shown``: other words for a reader. Raises LabError."""
        line = f"$ remuda {' '.join(shown or words)}"
        print(f"\033[1m{line}\033[0m" if self.colour else line, flush=True)
        remuda.shown(*words)

    def elapsed(self) -> float:
        return time.monotonic() - self.started


def run_demo() -> None:
    """Raises LabError, with a sentence, when anything is not as it should be."""
    check_machine()
    tell = Narrator()
    before = machine_interfaces()
    tell.section("a bootable guest, made from Debian packages")
    image = ensure_guest_image(tell=tell.say)
    tell.say(f"{image.qcow2}, {image.qcow2.stat().st_size / (1 << 20):.1f} MiB")
    lab = Lab(lab_paths(LAB))
    if lab.is_up():
        raise LabError(f"lab {LAB} is up: another demo runs, or `remuda-lab --name {LAB} down` ends it")
    cluster = Cluster(lab)
    try:
        with tether() as read_end:
            tell.section("the mesh: etcd, api, two schedulers, image-store, Prometheus, three hosts")
            cluster.up(tether=read_end, tell=tell.say)
            with cluster.client.channel() as channel:
                moves = _perform(Mesh(cluster=cluster, image=image, channel=channel), tell)
            tell.section("taking everything down")
            lab.down()
    except grpc.RpcError as error:
        raise LabError(f"the api answered {error.code().name}: {error.details()}") from error
    finally:
        if lab.is_up():
            lab.down(keep_files=True)
            print(
                f"the demo stopped half-way, for the reason below; nothing of it runs any more. Logs stay in"
                f" {lab.paths.logs}; `make demo` starts afresh",
                file=sys.stderr,
            )
    # `down` has looked for processes, namespaces and mounts.
    if new := machine_interfaces() - before:
        raise LabError(f"new network interfaces on the machine: {', '.join(sorted(new))}")
    if lab.paths.root.exists():
        raise LabError(f"left behind: {lab.paths.root}")
    tell.say("nothing is left: no process, no namespace, no mount, no bridge, no file of the lab")
    tell.section("done")
    for line in moves:
        tell.say(line)


def _perform(mesh: Mesh, tell: Narrator) -> list[str]:
    """Returns a line about each move."""
    _show_mesh(mesh, tell)
    remuda = mesh.cli()
    counted = _first_measurement(mesh)
    tell.section("an image, uploaded in chunks")
    upload = ("--name", IMAGE, "--guest-agent")
    tell.run(
        remuda,
        *("image", "upload", str(mesh.image.qcow2), *upload),
        shown=("image", "upload", mesh.image.qcow2.name, *upload),
    )

    tell.section("two guests: one on host1's own disk, one on storage that host1 and host2 share")
    web = _launch(mesh, tell, "web", "--host", "host1", "--pool", "local")
    db = _launch(mesh, tell, "db", "--host", "host1", "--pool", "shared")
    for guest in (web, db):
        _greet(guest, tell)
    tell.run(remuda, "instance", "list")

    tell.section("block live migration: web's memory and disk move from host1 to host3")
    moves = [_move(mesh, tell, web, "web", to="host3", bandwidth=BANDWIDTH_MIB_S)]
    tell.section("shared-storage live migration: db's memory moves from host1 to host2, its disk stays")
    moves.append(_move(mesh, tell, db, "db", to="host2", pool="shared"))

    tell.section("what is on record: the instance's events, the operation's steps, the migrations")
    tell.run(remuda, "instance", "events", "web")
    operation = remuda.json("migration", "list", web.uid)[0]["operation"]
    tell.run(remuda, "operation", "show", operation.removeprefix("operations/"))
    tell.run(remuda, "migration", "list")
    _show_metrics(mesh, tell, counted)

    tell.section("both guests are deleted")
    for guest, name in ((web, "web"), (db, "db")):
        tell.run(remuda, "instance", "delete", name, "--yes")
        for host in mesh.lab.running_hosts():
            if left := mesh.traces(host, guest.uid):
                raise LabError(f"{name} is deleted, but {host} still has {left}")
    return moves


def _show_mesh(mesh: Mesh, tell: Narrator) -> None:
    for name, unit in sorted(mesh.lab.fabric().units.status().items()):
        if not name.startswith("host"):
            tell.say(f"{name:12} pid {unit.pid}")
    for plan in mesh.lab.plans():
        units = mesh.lab.host(plan.name).units.status()
        pids = ", ".join(f"{name} pid {unit.pid}" for name, unit in sorted(units.items()))
        tell.say(f"{plan.name:12} {plan.address}, namespaces of its own, {pids}")
    tell.say(f"{mesh.leader()} leads")
    tell.run(mesh.cli(), "host", "list", "-o", "wide")


def _launch(mesh: Mesh, tell: Narrator, name: str, *where: str) -> Guest:
    words = ("instance", "create", name, "--flavor", "tiny", "--image", IMAGE, "--network", "guests", *where)
    tell.run(mesh.cli(), *words)
    return mesh.guest(f"projects/demo/instances/{name}")


def _greet(guest: Guest, tell: Narrator) -> None:
    state = guest.view.wait_up()
    if str(guest.address) not in state.addresses or state.uuid != guest.uid:
        raise LabError(f"the guest at {guest.address} says it is {state}")
    tell.say(
        f"{state.hostname} answers at {guest.address}, which it read from its config drive,"
        f" {state.uptime_seconds:.0f} s after its kernel started"
    )


def _move(
    mesh: Mesh, tell: Narrator, guest: Guest, name: str, *, to: str, bandwidth: int = 0, pool: str = "local"
) -> str:
    """Returns a line about the move."""
    source = guest.host()
    words = ["instance", "live-migrate", name, "--to", to]
    words += ["--bandwidth", str(bandwidth)] if bandwidth else []
    before = Before.of(guest)
    with Pinger(mesh.lab.fabric().init, guest.address, interval=0.02) as pinger:
        pinger.wait_answer(timeout=60)
        tell.run(mesh.cli(), *words)
        pinger.wait_answer(timeout=60)
        report = pinger.report()
    for line in check_moved(mesh, guest, before, source=source, target=to, pool=pool):
        tell.say(line)
    tell.say(f"from outside: {report}")
    record = mesh.migrations_of(guest)[0]
    if not record.HasField("downtime_ms"):
        raise LabError(f"{name} moved, but its downtime was not measured: {record}")
    return (
        f"{name}: {source} -> {to}, downtime {record.downtime_ms} ms, as the hosts measured it;"
        f" longest gap between two pings {report.longest_gap_seconds * 1000:.0f} ms"
    )


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.3f}"


def _measure(mesh: Mesh) -> dict[str, float]:
    """Every metric of the list, 0 for what has no sample yet."""
    found = {}
    for title, expression in _METRICS:
        samples = query(mesh.lab.fabric().init, addresses.PROMETHEUS, expression)
        found[title] = samples[0][1] if samples else 0.0
    return found


def _first_measurement(mesh: Mesh) -> dict[str, float]:
    """Once Prometheus has found and scraped every service."""
    expected = len(settings.targets(mesh.lab.plans()))
    wait_for(
        f"Prometheus scrapes {expected} targets",
        lambda: query(mesh.lab.fabric().init, addresses.PROMETHEUS, "sum(up)")[0][1] == expected,
        timeout=120,
        interval=0.2,
        status=lambda: query(mesh.lab.fabric().init, addresses.PROMETHEUS, "up == 0"),
    )
    return _measure(mesh)


def _show_metrics(mesh: Mesh, tell: Narrator, before: dict[str, float]) -> None:
    tell.section("what changed, as Prometheus read it from every service")
    wanted = "migrations that ended well"
    now = wait_for(
        "Prometheus has seen both migrations",
        lambda: after if (after := _measure(mesh))[wanted] == 2 else None,
        timeout=120,
        interval=0.2,
        status=lambda: _measure(mesh),
    )
    tell.say(f"{'':36} {'before':>14} {'now':>14}")
    for title, _ in _METRICS:
        same = "  (the same)" if before[title] == now[title] else ""
        tell.say(f"{title:36} {_figure(before[title]):>14} {_figure(now[title]):>14}{same}")
    frozen = [title for title, _ in _METRICS[:4] if before[title] == now[title]]
    if frozen:
        raise LabError(f"these metrics did not change: {', '.join(frozen)}")
