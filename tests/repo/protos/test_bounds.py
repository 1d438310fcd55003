"""Whatever a client can send has an end: every text, list and map of a request is bounded in its .proto."""

import re
from collections.abc import Iterator

import pytest
from buf.validate import validate_pb2
from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from remuda.compute.v1 import flavor_pb2, host_pb2, instance_pb2, migration_pb2, network_pb2, operation_pb2
from remuda.image.v1 import chunk_pb2, image_pb2
from remuda.scheduler.v1 import live_pb2, registry_pb2

FILES = (
    flavor_pb2,
    host_pb2,
    instance_pb2,
    migration_pb2,
    network_pb2,
    operation_pb2,
    image_pb2,
    chunk_pb2,
    live_pb2,
    registry_pb2,
)
TEXTS = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
# A format that has a length of its own.
FORMATS = ("uuid", "ipv4", "ipv4_with_prefixlen")
METHODS = [
    method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def bounded(rules: validate_pb2.StringRules | validate_pb2.BytesRules) -> bool:
    if any(rules.HasField(name) for name in ("max_len", "len") if name in rules.DESCRIPTOR.fields_by_name):
        return True
    if isinstance(rules, validate_pb2.StringRules):
        closed = re.search(r"\{\d+(,\d+)?\}", rules.pattern) and not re.search(r"[^\\][*+]", rules.pattern)
        return bool(closed) or rules.HasField("max_bytes") or any(getattr(rules, name) for name in FORMATS)
    return False


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def troubles(field: FieldDescriptor, rules: validate_pb2.FieldRules) -> Iterator[str]:
    """What of the field has no end."""
    below = field.message_type
    if below is not None and is_map(field):
        if not rules.map.HasField("max_pairs"):
            yield "max_pairs"
        parts = [(rules.map.keys, below.fields_by_name["key"])]
        parts.append((rules.map.values, below.fields_by_name["value"]))
    elif field.is_repeated:
        if not rules.repeated.HasField("max_items"):
            yield "max_items"
        parts = [(rules.repeated.items, field)]
    else:
        parts = [(rules, field)]
    for of_part, part in parts:
        if part.type == FieldDescriptor.TYPE_STRING and not bounded(of_part.string):
            yield "length"
        if part.type == FieldDescriptor.TYPE_BYTES and not bounded(of_part.bytes):
            yield "length"


def unbounded(message: Descriptor, path: str = "") -> Iterator[str]:
    for field in message.fields:
        behaviours = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
        if field_behavior_pb2.OUTPUT_ONLY in behaviours:
            continue  # Never read from a request, nor stored.
        rules = field.GetOptions().Extensions[validate_pb2.field]
        yield from (f"{path}{field.name}: {trouble}" for trouble in troubles(field, rules))
        below = field.message_type
        if below is not None and below.full_name.startswith("remuda.") and not is_map(field):
            yield from unbounded(below, f"{path}{field.name}.")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method.full_name))
def test_every_text_list_and_map_of_a_request_is_bounded(method: object) -> None:
    found = list(unbounded(method.input_type))  # type: ignore[attr-defined]
    assert not found, found
