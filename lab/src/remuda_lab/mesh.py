"""What tests and the demo do with a cluster: launch, look at guests, ask what is left of them."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import grpc
from google.longrunning import operations_pb2
from google.longrunning.operations_pb2_grpc import OperationsStub
from remuda.compute.v1 import host_pb2, instance_pb2, migration_pb2, moving_pb2, operation_pb2
from remuda.compute.v1.host_pb2_grpc import HostServiceStub
from remuda.compute.v1.instance_pb2_grpc import InstanceServiceStub
from remuda.compute.v1.migration_pb2_grpc import MigrationServiceStub
from remuda.compute.v1.operation_pb2_grpc import OperationServiceStub

from remuda_lab.cluster import Cluster
from remuda_lab.cluster.cli import Cli
from remuda_lab.cluster.client import ADMIN
from remuda_lab.cluster.populate import NETWORK, wait_hosts_up
from remuda_lab.guest import GuestImage
from remuda_lab.guest_view import GuestView
from remuda_lab.lab import Lab
from remuda_lab.waiting import wait_for

IMAGE = "guest"
CALL_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """``channel`` is an administrator's."""

    cluster: Cluster
    image: GuestImage
    channel: grpc.Channel

    # -- who can be asked ------------------------------------------------------------------------

    @property
    def lab(self) -> Lab:
        return self.cluster.lab

    def cli(self, user: str = ADMIN) -> Cli:
        return Cli(environment=self.cluster.client.environment(user))

    @property
    def instances(self) -> InstanceServiceStub:
        return InstanceServiceStub(self.channel)

    @property
    def operations(self) -> OperationsStub:
        return OperationsStub(self.channel)

    @property
    def watches(self) -> OperationServiceStub:
        return OperationServiceStub(self.channel)

    @property
    def migrations(self) -> MigrationServiceStub:
        return MigrationServiceStub(self.channel)

    # -- doing -----------------------------------------------------------------------------------

    def upload_image(self) -> None:
        """The project's guest as image ``guest``."""
        self.cli().run("image", "upload", str(self.image.qcow2), "--name", IMAGE, "--guest-agent")

    def launch(
        self,
        name: str,
        *,
        host: str = "",
        pool: str = "",
        flavor: str = "tiny",
        image: str = IMAGE,
        user_data: str = "",
    ) -> Guest:
        """Launch and wait until the guest answers on its network. Raises LabError."""
        arguments = ["instance", "create", name, "--flavor", flavor, "--image", image, "--network", NETWORK]
        arguments += ["--host", host] if host else []
        arguments += ["--pool", pool] if pool else []
        arguments += ["--user-data", "-"] if user_data else []
        text = self.cli().run(*arguments, "-o", "json", stdin=user_data or None)
        guest = self.guest(json.loads(text)["name"])
        guest.view.wait_up()
        return guest

    def guest(self, name: str) -> Guest:
        """By resource name (projects/demo/instances/...)."""
        record = self.instance(name)
        return Guest(
            mesh=self,
            name=record.name,
            uid=record.uid,
            address=IPv4Address(record.network_interfaces[0].address),
        )

    def instance(self, name: str) -> instance_pb2.Instance:
        """Raises grpc.RpcError."""
        return self.instances.GetInstance(
            instance_pb2.GetInstanceRequest(name=name), timeout=CALL_SECONDS, wait_for_ready=True
        )

    def live_migrate(self, guest: Guest, *, to: str = "", bandwidth: int = 0) -> operations_pb2.Operation:
        """Admit a live migration and return at once. ``bandwidth`` in MiB/s, 0 for no cap."""
        return self.instances.LiveMigrateInstance(
            moving_pb2.LiveMigrateInstanceRequest(
                name=guest.name,
                target_host=f"hosts/{self.host_uuid(to)}" if to else "",
                bandwidth_mib_s=bandwidth,
                request_id=str(uuid.uuid4()),
            ),
            timeout=CALL_SECONDS,
        )

    def operation(self, name: str) -> operations_pb2.Operation:
        return self.operations.GetOperation(
            operations_pb2.GetOperationRequest(name=name), timeout=CALL_SECONDS, wait_for_ready=True
        )

    def metadata(self, name: str) -> operation_pb2.OperationMetadata:
        """Of an operation, as it stands."""
        return unpack_metadata(self.operation(name))

    def wait_done(self, name: str, *, timeout: float = 120.0) -> operations_pb2.Operation:
        """Wait until the operation has ended, well or not. Raises WaitTimeout with its last metadata."""
        seen: list[operations_pb2.Operation] = []

        def done() -> operations_pb2.Operation | None:
            seen[:] = [self.operation(name)]
            return seen[0] if seen[0].done else None

        def last() -> str:
            return str(unpack_metadata(seen[0])).replace("\n", " ")[-800:]

        return wait_for(f"{name} ends", done, timeout=timeout, interval=0.1, status=last)

    def migration_of(self, operation: str) -> migration_pb2.Migration:
        """The record that an operation made."""
        name = self.metadata(operation).migration
        return self.migrations.GetMigration(
            migration_pb2.GetMigrationRequest(name=name), timeout=CALL_SECONDS
        )

    def migrations_of(self, guest: Guest) -> list[migration_pb2.Migration]:
        """Newest first."""
        request = migration_pb2.ListMigrationsRequest(parent=guest.name)
        return list(self.migrations.ListMigrations(request, timeout=CALL_SECONDS).migrations)

    def wait_moving(self, operation: str, *, timeout: float = 60.0) -> operation_pb2.OperationMetadata:
        """Wait until the operation's live progress shows bytes on their way. Raises WaitTimeout."""
        seen: list[operation_pb2.OperationMetadata] = []

        def moving() -> operation_pb2.OperationMetadata | None:
            found = self.watches.WatchOperation(
                operation_pb2.WatchOperationRequest(name=operation), timeout=timeout
            )
            try:
                for message in found:
                    seen[:] = [unpack_metadata(message.operation)]
                    progress = seen[0].progress.migration
                    if progress.memory_processed_bytes or progress.disk_processed_bytes:
                        return seen[0]
                    if message.operation.done:
                        return None
            finally:
                found.cancel()
            return None

        return wait_for(
            f"{operation} copies", moving, timeout=timeout, status=lambda: str(seen).replace("\n", " ")
        )

    # -- looking ---------------------------------------------------------------------------------

    def host_uuid(self, name: str) -> str:
        return self.lab.plan(name).uuid

    def host_name(self, resource: str) -> str:
        """hosts/{uuid} -> host1. Raises KeyError."""
        return {plan.uuid: plan.name for plan in self.lab.plans()}[resource.rpartition("/")[2]]

    def host(self, name: str) -> host_pb2.Host:
        return HostServiceStub(self.channel).GetHost(
            host_pb2.GetHostRequest(name=f"hosts/{self.host_uuid(name)}"), timeout=CALL_SECONDS
        )

    def wait_hosts_up(self, *, timeout: float = 60.0) -> None:
        """Wait until every host of the lab is UP."""
        wait_hosts_up(self.channel, [plan.name for plan in self.lab.plans()], timeout=timeout)

    def leader(self) -> str:
        """Which scheduler leads now, by its own metrics. Raises WaitTimeout when none does for 30 s."""

        def leads() -> str | None:
            for name in ("scheduler-1", "scheduler-2"):
                units = self.lab.fabric().units
                if units.running(name) and "\nremuda_leader 1.0\n" in self.cluster.metrics(name):
                    return name
            return None

        return wait_for("a scheduler leads", leads, timeout=60)

    def domains(self, host: str) -> dict[str, str]:
        """Every domain of a host's libvirt and its state as virsh says it."""
        names = self.lab.host(host).virsh("list", "--all", "--name").split()
        return {name: self.lab.host(host).virsh("domstate", name) for name in names}

    def directory(self, host: str, uid: str, pool: str = "local") -> Path:
        """An instance's files on a host, as the machine sees them."""
        if pool == "shared":
            return self.lab.paths.shared_pool / "instances" / uid
        return self.lab.paths.host(host).local_pool / "instances" / uid

    def traces(self, host: str, uid: str, *, pool: str = "local") -> list[str]:
        """What a host still has of an instance: domain, QEMU, files."""
        found = [f"domain {state}" for name, state in self.domains(host).items() if name == uid]
        found += [f"QEMU {pid}" for pid in self.lab.host(host).qemu_pids(uid)]
        directory = self.directory(host, uid, pool)
        # What is on the shared pool is no more this host's than another's.
        if pool != "shared" and directory.exists():
            found.append(f"files {sorted(path.name for path in directory.iterdir())} in {directory}")
        return found

    def etcd(self, prefix: str = "") -> dict[str, bytes]:
        """Keys below /remuda/v1/ + prefix, without that, and their values."""
        argv = [
            "etcdctl",
            "--endpoints",
            "127.0.0.1:2379",
            "get",
            "--prefix",
            f"/remuda/v1/{prefix}",
            "-w",
            "json",
        ]
        text = self.lab.fabric().run(["env", "ETCDCTL_API=3", *argv])
        return {_text(kv["key"]).removeprefix("/remuda/v1/"): _raw(kv["value"]) for kv in _kvs(text)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A launched instance."""

    mesh: Mesh
    name: str
    uid: str
    address: IPv4Address

    @property
    def view(self) -> GuestView:
        return GuestView(init=self.mesh.lab.fabric().init, address=self.address)

    def record(self) -> instance_pb2.Instance:
        return self.mesh.instance(self.name)

    def host(self) -> str:
        """The lab's name of the host that owns it."""
        return self.mesh.host_name(self.record().host)

    def wait_state(
        self, state: instance_pb2.Instance.State.ValueType, *, timeout: float = 30.0
    ) -> instance_pb2.Instance:
        """Raises WaitTimeout."""
        return self.wait_record(lambda record: record.state == state, timeout=timeout)

    def wait_record(
        self, right: Callable[[instance_pb2.Instance], bool], *, timeout: float = 30.0
    ) -> instance_pb2.Instance:
        """Wait until the record is as it should be. Raises WaitTimeout with the record."""
        seen: list[instance_pb2.Instance] = []

        def looked() -> instance_pb2.Instance | None:
            seen[:] = [self.record()]
            return seen[0] if right(seen[0]) else None

        return wait_for(
            f"{self.name} is as wanted",
            looked,
            timeout=timeout,
            status=lambda: str(seen).replace("\n", " "),
        )

    def delete(self) -> None:
        self.mesh.cli().run("instance", "delete", self.uid, "--yes")


def unpack_metadata(operation: operations_pb2.Operation) -> operation_pb2.OperationMetadata:
    """Raises ValueError for an operation of another kind."""
    metadata = operation_pb2.OperationMetadata()
    if not operation.metadata.Unpack(metadata):
        raise ValueError(f"{operation.name} carries {operation.metadata.type_url}")
    return metadata


def _kvs(text: str) -> list[dict[str, str]]:
    answer: dict[str, Any] = json.loads(text)
    kvs: list[dict[str, str]] = answer.get("kvs", [])
    return kvs


def _raw(encoded: str) -> bytes:
    return base64.b64decode(encoded)


def _text(encoded: str) -> str:
    return _raw(encoded).decode()
