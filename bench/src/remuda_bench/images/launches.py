"""Guests launched from one image on the lab's mesh: one, and ten at once; onto hosts that have nothing of the
image, and onto hosts that have it. Beside the same guests, on the same hosts, started by libvirt alone.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import libvirt
from prometheus_client.parser import text_string_to_metric_families
from remuda.compute.v1 import instance_pb2
from remuda_lab.cluster.populate import FLAVORS, NETWORK
from remuda_lab.mesh import CALL_SECONDS, Guest, Mesh

from remuda_bench import machine
from remuda_bench.images.alone import Alone
from remuda_bench.images.figures import Burst, Cache, Launch, Launches, Starter
from remuda_bench.images.taking import Taking, Tell
from remuda_bench.images.transfers import MIB
from remuda_bench.migration.plan import Kind
from remuda_bench.migration.twin import Names, plan_twin
from remuda_bench.watching import done

IMAGE = "bench-launches"
IMAGE_MIB = 256
FLAVOR = "tiny"
MANY = 10
LAUNCH_SECONDS = 600.0
REST_SECONDS = 2.0
"""Before each burst: the machine still works for the guests that are gone."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is launched from: resource names."""

    parent: str
    image: str


def run_launches(mesh: Mesh, runs: int, *, tell: Tell) -> Launches:
    """Raises LabError when a guest does not run."""
    taking = Taking()
    record = _upload(mesh)
    source = Source(parent=record["name"].partition("/images/")[0], image=record["name"])
    with ExitStack() as stack:
        connections = {
            host: stack.enter_context(closing(libvirt.open(mesh.lab.host(host).libvirt_uri)))
            for host in mesh.lab.running_hosts()
        }
        bursts, alone = _warm_up(mesh, source, connections, tell)
        for one in alone:
            stack.callback(one.remove)
        for run in range(1, runs + 1):
            bursts += _round(mesh, source, alone, run, tell)
    return Launches(
        taken=taking.end(machine=machine.with_guests(mesh, next(iter(connections))), runs=runs),
        image_bytes=IMAGE_MIB * MIB,
        image_stored_bytes=int(record["storedBytes"]),
        memory_mib=FLAVORS[FLAVOR].memory_mib,
        hosts=len(connections),
        bursts=bursts,
    )


def _warm_up(
    mesh: Mesh, source: Source, connections: dict[str, libvirt.virConnect], tell: Tell
) -> tuple[list[Burst], list[Alone]]:
    """The guests that libvirt will start alone are modelled on these ten, each on its host."""
    empty_caches(mesh)
    with _remuda(mesh, source, 0, Cache.COLD, MANY, tell) as (burst, guests):
        alone = []
        for number, guest in enumerate(guests):
            host = guest.host()
            twin = plan_twin(mesh, guest, Kind.BLOCK, host=host, names=Names.new(number))
            twin.lay(host, guest)
            alone.append(Alone(twin=twin, host=host, connection=connections[host]))
    return [burst, _libvirt(alone, 0, tell)], alone


def _round(mesh: Mesh, source: Source, alone: Sequence[Alone], run: int, tell: Tell) -> Iterator[Burst]:
    for guests in (1, MANY):
        empty_caches(mesh)
        with _remuda(mesh, source, run, Cache.COLD, guests, tell) as (burst, _):
            yield burst
    _warm(mesh, source)
    for guests in (1, MANY):
        # In turns, so that none is always the one that runs on the quieter machine.
        for starter in (Starter.REMUDA, Starter.LIBVIRT) if run % 2 else (Starter.LIBVIRT, Starter.REMUDA):
            if starter is Starter.LIBVIRT:
                yield _libvirt(alone[:guests], run, tell)
            else:
                with _remuda(mesh, source, run, Cache.WARM, guests, tell) as (burst, _):
                    yield burst


def _warm(mesh: Mesh, source: Source) -> None:
    """Every host that has nothing of the image after the burst gets it."""
    for host in mesh.lab.running_hosts():
        if not list((mesh.lab.paths.host(host).local_pool / "base").glob("*.raw")):
            operation = _create(mesh, source, f"bench-warms-{host}", host=f"hosts/{mesh.host_uuid(host)}")
            done(mesh, operation, timeout=LAUNCH_SECONDS)
            _delete(mesh, [mesh.guest(mesh.metadata(operation).target)])


# -- Remuda ---------------------------------------------------------------------------------------------


@contextmanager
def _remuda(
    mesh: Mesh, source: Source, run: int, cache: Cache, guests: int, tell: Tell
) -> Iterator[tuple[Burst, list[Guest]]]:
    """They are gone after the block."""
    sent = store_sent_bytes(mesh)
    names = [f"bench-{run}-{cache}-{guests}-{number}" for number in range(guests)]

    def launch(name: str, began: float) -> tuple[str, float, float]:
        operation = _create(mesh, source, name)
        admitted = time.perf_counter() - began
        done(mesh, operation, timeout=LAUNCH_SECONDS)
        return operation, admitted, time.perf_counter() - began

    launched = at_once(names, launch)
    sent = store_sent_bytes(mesh) - sent
    found = [mesh.guest(mesh.metadata(operation).target) for operation, _, _ in launched]
    launches = [
        Launch(host=guest.host(), admitted_seconds=admitted, running_seconds=running)
        for guest, (_, admitted, running) in zip(found, launched, strict=True)
    ]
    burst = Burst(run=run, starter=Starter.REMUDA, cache=cache, launches=launches, store_sent_bytes=int(sent))
    tell(_line(burst))
    try:
        yield burst, found
    finally:
        _delete(mesh, found)


def _create(mesh: Mesh, source: Source, name: str, *, host: str = "") -> str:
    """The operation."""
    instance = instance_pb2.Instance(
        display_name=name,
        flavor=f"flavors/{FLAVOR}",
        image=source.image,
        network_interfaces=[instance_pb2.NetworkInterface(network=f"networks/{NETWORK}")],
        pool="local",
    )
    request = instance_pb2.CreateInstanceRequest(
        parent=source.parent, instance=instance, host=host, request_id=str(uuid.uuid4())
    )
    return str(mesh.instances.CreateInstance(request, timeout=CALL_SECONDS).name)


def _delete(mesh: Mesh, guests: Sequence[Guest]) -> None:
    requests = [
        instance_pb2.DeleteInstanceRequest(name=guest.name, request_id=str(uuid.uuid4())) for guest in guests
    ]
    for operation in [mesh.instances.DeleteInstance(one, timeout=CALL_SECONDS).name for one in requests]:
        done(mesh, operation, timeout=LAUNCH_SECONDS)


# -- libvirt --------------------------------------------------------------------------------------------


def _libvirt(alone: Sequence[Alone], run: int, tell: Tell) -> Burst:
    def start(one: Alone, began: float) -> Launch:
        one.start()
        running = time.perf_counter() - began
        return Launch(host=one.host, admitted_seconds=None, running_seconds=running)

    try:
        launches = at_once(alone, start)
    finally:
        for one in alone:
            one.stop()
    burst = Burst(run=run, starter=Starter.LIBVIRT, cache=Cache.WARM, launches=launches, store_sent_bytes=0)
    tell(_line(burst))
    return burst


# -- both -----------------------------------------------------------------------------------------------


def at_once(
    things: Sequence[T], start: Callable[[T, float], R], *, rest_seconds: float = REST_SECONDS
) -> list[R]:
    """``start`` of each, at the same moment, which it is given; raises what one of them raises."""
    began: list[float] = []
    barrier = threading.Barrier(len(things), action=lambda: began.append(time.perf_counter()))

    def one(thing: T) -> R:
        barrier.wait(60)
        return start(thing, began[0])

    time.sleep(rest_seconds)
    with ThreadPoolExecutor(max_workers=len(things)) as pool:
        return list(pool.map(one, things))


def empty_caches(mesh: Mesh) -> None:
    """No host has anything of any image. No guest may be there."""
    for host in mesh.lab.running_hosts():
        for directory in (mesh.lab.paths.host(host).local_pool, mesh.lab.paths.shared_pool):
            for file in (directory / "base").glob("*"):
                file.unlink()


def store_sent_bytes(mesh: Mesh) -> float:
    """To hosts that fetched images, since the image store started."""
    return fetched_bytes(mesh.cluster.metrics("image-store"))


def fetched_bytes(metrics: str) -> float:
    """Of a page of an image store's metrics. Pure."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == "remuda_image_transfer_bytes_total" and sample.labels.get("kind") == "fetched"
    )


def _upload(mesh: Mesh) -> dict[str, str]:
    """The lab's guest with noise behind its partitions, so that its content is worth fetching."""
    with tempfile.TemporaryDirectory(prefix="remuda-bench-") as directory:
        file = Path(directory) / "guest.raw"
        shutil.copyfile(mesh.image.raw, file)
        dice = random.Random(IMAGE)
        with file.open("ab") as stream:
            for _ in range(IMAGE_MIB - file.stat().st_size // MIB):
                stream.write(dice.randbytes(MIB))
        mesh.cli().run("image", "upload", str(file), "--name", IMAGE, "--guest-agent")
    images: list[dict[str, str]] = mesh.cli().json("image", "list")
    return next(one for one in images if one["displayName"] == IMAGE)


def _line(burst: Burst) -> str:
    return (
        f"launches, run {burst.run}, {burst.starter}, {burst.cache}, {len(burst.launches)} on {burst.hosts}"
        f" hosts: {burst.all_running_seconds:.2f} s, {burst.store_sent_bytes / MIB:.1f} MiB sent"
    )
