"""What a list of each noun shows."""

from collections.abc import Mapping, Sequence
from typing import Any

from google.longrunning import operations_pb2
from remuda.compute.v1 import (
    event_pb2,
    flavor_pb2,
    host_pb2,
    instance_pb2,
    migration_pb2,
    network_pb2,
    operation_pb2,
)
from remuda.image.v1 import image_pb2

from remuda_cli.output.table import Column
from remuda_cli.output.units import human_bytes, human_ms
from remuda_cli.output.words import age, enum_word, last_part, moment


def operation_metadata(operation: operations_pb2.Operation) -> operation_pb2.OperationMetadata:
    """Empty when the operation carries another type."""
    metadata = operation_pb2.OperationMetadata()
    operation.metadata.Unpack(metadata)
    return metadata


def _used(used: int, total: int) -> str:
    return f"{used}/{total}" if total else str(used)


def _host_state(host: host_pb2.Host) -> str:
    return enum_word(host, "state") + (",CORDONED" if host.cordoned else "")


def _downtime(migration: migration_pb2.Migration) -> str:
    return human_ms(migration.downtime_ms) if migration.HasField("downtime_ms") else ""


def _version(number: int) -> str:
    """libvirt's and QEMU's encoding: major * 1,000,000 + minor * 1,000 + release."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}" if number else ""


def _swept(item: host_pb2.SweepItem) -> str:
    if item.removed:
        return "removed"
    return "removable" if item.removable else "stays"


def _refusal(action: instance_pb2.AllowedAction) -> str:
    return action.refusal.message


def _project(name: str) -> str:
    """`demo` of `projects/demo/images/debian`."""
    parts = name.split("/")
    return parts[1] if len(parts) > 1 and parts[0] == "projects" else ""


def _image_needs(image: image_pb2.Image) -> str:
    """`x86_64,2.0 GiB disk,512.0 MiB memory`."""
    needs = [image.architecture] if image.architecture else []
    needs += [f"{human_bytes(image.min_disk_gib << 30)} disk"] if image.min_disk_gib else []
    needs += [f"{human_bytes(image.min_memory_mib << 20)} memory"] if image.min_memory_mib else []
    return ",".join(needs)


_INSTANCE = (
    Column("NAME", lambda m, _: m.display_name),
    Column("STATE", lambda m, _: enum_word(m, "state")),
    Column("HOST", lambda m, label: label(m.host) if m.host else ""),
    Column("ADDRESS", lambda m, _: ",".join(nic.address for nic in m.network_interfaces)),
    Column("VCPUS", lambda m, _: str(m.vcpus)),
    Column("MEMORY", lambda m, _: human_bytes(m.memory_mib << 20)),
    Column("OPERATION", lambda m, _: last_part(m.operation)[:8]),
    Column("AGE", lambda m, _: age(m, "create_time")),
    Column("UUID", lambda m, _: m.uid, wide=True),
    Column("POWER", lambda m, _: enum_word(m.observed, "power_state"), wide=True),
    Column("FLAVOR", lambda m, _: last_part(m.flavor), wide=True),
    Column("IMAGE", lambda m, _: last_part(m.image)[:8], wide=True),
    Column("POOL", lambda m, _: m.pool, wide=True),
    Column("EPOCH", lambda m, _: str(m.epoch), wide=True),
    Column("MESSAGE", lambda m, _: m.status_message, wide=True),
)
_HOST = (
    Column("NAME", lambda m, _: m.display_name),
    Column("STATE", lambda m, _: _host_state(m)),
    Column("INSTANCES", lambda m, _: str(m.usage.instances)),
    Column("VCPUS", lambda m, _: _used(m.usage.vcpus, m.inventory.vcpus)),
    Column("MEMORY MIB", lambda m, _: _used(m.usage.memory_mib, m.inventory.memory_mib)),
    Column("POOLS", lambda m, _: ",".join(p.name + ("*" if p.shared else "") for p in m.inventory.pools)),
    Column("SINCE", lambda m, _: age(m, "state_time")),
    Column("UUID", lambda m, _: m.uid, wide=True),
    Column("TYPE", lambda m, _: m.inventory.domain_type, wide=True),
    Column("LIBVIRT", lambda m, _: _version(m.inventory.libvirt_version), wide=True),
    Column("QEMU", lambda m, _: _version(m.inventory.qemu_version), wide=True),
    Column("AGENT", lambda m, _: m.inventory.agent_version, wide=True),
    Column(
        "MIGRATION",
        lambda m, _: f"{m.inventory.migration_transport} {m.inventory.migration_address}".strip(),
        wide=True,
    ),
    Column("WARNINGS", lambda m, _: "; ".join(m.warnings), wide=True),
)
_IMAGE = (
    Column("NAME", lambda m, _: m.display_name),
    Column("STATE", lambda m, _: enum_word(m, "state")),
    Column("VISIBILITY", lambda m, _: enum_word(m, "visibility").lower()),
    Column("PROJECT", lambda m, _: _project(m.name)),
    Column("DISK", lambda m, _: human_bytes(m.virtual_bytes) if m.virtual_bytes else ""),
    Column("AGE", lambda m, _: age(m, "create_time")),
    Column("UUID", lambda m, _: m.uid, wide=True),
    Column("FORMAT", lambda m, _: enum_word(m, "format").lower(), wide=True),
    Column("FILE", lambda m, _: human_bytes(m.file_bytes), wide=True),
    Column("STORED", lambda m, _: human_bytes(m.stored_bytes), wide=True),
    Column("NEEDS", lambda m, _: _image_needs(m), wide=True),
    Column("SOURCE", lambda m, _: last_part(m.source.instance)[:8], wide=True),
    Column("MANIFEST", lambda m, _: m.manifest_digest[:12], wide=True),
    Column("MESSAGE", lambda m, _: m.status_message, wide=True),
)
_FLAVOR = (
    Column("NAME", lambda m, _: last_part(m.name)),
    Column("VCPUS", lambda m, _: str(m.vcpus)),
    Column("MEMORY", lambda m, _: human_bytes(m.memory_mib << 20)),
    Column("DISK", lambda m, _: human_bytes(m.disk_gib << 30) if m.disk_gib else "image"),
)
_NETWORK = (
    Column("NAME", lambda m, _: last_part(m.name)),
    Column("PHYSICAL", lambda m, _: m.physical_network),
    Column("CIDR", lambda m, _: m.cidr),
    Column("GATEWAY", lambda m, _: m.gateway),
    Column("PORTS", lambda m, _: str(m.ports)),
    Column("RANGE", lambda m, _: f"{m.allocation_start}-{m.allocation_end}".strip("-"), wide=True),
    Column("DNS", lambda m, _: ",".join(m.dns_servers), wide=True),
    Column("MTU", lambda m, _: str(m.mtu or ""), wide=True),
)
_MIGRATION = (
    Column("ID", lambda m, _: last_part(m.name)[:8]),
    Column("INSTANCE", lambda m, _: m.name.split("/")[3][:8]),
    Column("KIND", lambda m, _: enum_word(m, "kind")),
    Column("STATE", lambda m, _: enum_word(m, "state")),
    Column("FROM", lambda m, label: label(m.source_host) if m.source_host else ""),
    Column("TO", lambda m, label: label(m.target_host) if m.target_host else ""),
    Column("DOWNTIME", lambda m, _: _downtime(m)),
    Column("MEMORY", lambda m, _: human_bytes(m.memory_bytes)),
    Column("DISK", lambda m, _: human_bytes(m.disk_bytes)),
    Column("AGE", lambda m, _: age(m, "create_time")),
    Column("NAME", lambda m, _: m.name, wide=True),
    Column("ERROR", lambda m, _: m.error.message, wide=True),
)
_OPERATION = (
    Column("ID", lambda m, _: last_part(m.name)[:8]),
    Column("ACTION", lambda m, _: operation_metadata(m).action),
    Column("TARGET", lambda m, _: last_part(operation_metadata(m).target)),
    Column("STATE", lambda m, _: enum_word(operation_metadata(m), "state")),
    Column("PHASE", lambda m, _: operation_metadata(m).phase),
    Column("REQUESTER", lambda m, _: operation_metadata(m).requester),
    Column("AGE", lambda m, _: age(operation_metadata(m), "create_time")),
    Column("NAME", lambda m, _: m.name, wide=True),
    Column("ERROR", lambda m, _: m.error.message, wide=True),
)
_EVENT = (
    Column("TIME", lambda m, _: moment(m.time).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"),
    Column("SEVERITY", lambda m, _: enum_word(m, "severity")),
    Column("TYPE", lambda m, _: m.type),
    Column("HOST", lambda m, label: label(m.host) if m.host else ""),
    Column("OPERATION", lambda m, _: last_part(m.operation)[:8]),
    Column("MESSAGE", lambda m, _: m.message),
    Column("PRINCIPAL", lambda m, _: m.principal, wide=True),
    Column("REQUEST", lambda m, _: m.request_id, wide=True),
)
_ACTION = (
    Column("ACTION", lambda m, _: m.action),
    Column("ALLOWED", lambda m, _: "yes" if m.allowed else "no"),
    Column("WHY NOT", lambda m, _: _refusal(m)),
)
_VERDICT = (
    Column("HOST", lambda m, _: m.display_name or last_part(m.host)[:8]),
    Column("FITS", lambda m, _: "yes" if m.eligible else "no"),
    Column("SCORE", lambda m, _: f"{m.score:.3f}" if m.eligible else ""),
    Column("FILTER", lambda m, _: m.filter),
    Column("REASON", lambda m, _: m.reason),
    Column("WEIGHTS", lambda m, _: " ".join(f"{k}={v:.3f}" for k, v in sorted(m.weights.items())), wide=True),
)

_SWEPT = (
    Column("KIND", lambda m, _: enum_word(m, "kind")),
    Column("WHAT", lambda m, _: _swept(m)),
    Column("PATH", lambda m, _: m.path),
    Column("SIZE", lambda m, _: human_bytes(m.size_bytes) if m.size_bytes else ""),
    Column("REASON", lambda m, _: m.reason),
    Column("INSTANCE", lambda m, _: m.instance_id, wide=True),
)

_BY_TYPE: Mapping[str, Sequence[Column]] = {
    kind.DESCRIPTOR.full_name: columns
    for kind, columns in (
        (instance_pb2.Instance, _INSTANCE),
        (host_pb2.Host, _HOST),
        (image_pb2.Image, _IMAGE),
        (flavor_pb2.Flavor, _FLAVOR),
        (network_pb2.Network, _NETWORK),
        (migration_pb2.Migration, _MIGRATION),
        (operations_pb2.Operation, _OPERATION),
        (event_pb2.InstanceEvent, _EVENT),
        (instance_pb2.AllowedAction, _ACTION),
        (operation_pb2.HostVerdict, _VERDICT),
        (host_pb2.SweepItem, _SWEPT),
    )
}


def columns_of(kind: Any) -> Sequence[Column]:
    """For a generated message class."""
    return _BY_TYPE[kind.DESCRIPTOR.full_name]
