"""Our subset of etcd's protocol says the same as etcd's own, field by field."""

import re

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FieldDescriptorProto
from remuda.etcd.v1 import etcd_pb2 as pb
from remuda_core.etcd import wire
from remuda_core.testing.etcd3 import etcd3_descriptors

# Of etcd 3.4, younger than what etcd3 0.12.0 carries. From etcd's api/etcdserverpb/rpc.proto.
YOUNGER = {
    ("WatchCreateRequest", 7): ("watch_id", FieldDescriptor.TYPE_INT64),
    ("WatchCreateRequest", 8): ("fragment", FieldDescriptor.TYPE_BOOL),
    ("WatchResponse", 7): ("fragment", FieldDescriptor.TYPE_BOOL),
    ("StatusResponse", 7): ("raftAppliedIndex", FieldDescriptor.TYPE_UINT64),
    ("StatusResponse", 8): ("errors", FieldDescriptor.TYPE_STRING),
    ("StatusResponse", 9): ("dbSizeInUse", FieldDescriptor.TYPE_INT64),
}


def snake(name: str) -> str:
    """etcd mixes ID, dbSize and cluster_id; ours are snake case. Names do not travel, numbers do."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def theirs() -> dict[str, DescriptorProto]:
    return {message.name: message for file in etcd3_descriptors() for message in file.message_type}


def test_every_message_has_etcds_fields_under_etcds_numbers() -> None:
    compared = 0
    younger = set()
    for name, message in pb.DESCRIPTOR.message_types_by_name.items():
        fields = {field.number: field for field in theirs()[name].field}
        for field in message.fields:
            if field.number in fields:
                same_field(field, fields[field.number])
            else:
                their_name, their_type = YOUNGER[name, field.number]
                assert (field.name, field.type) == (snake(their_name), their_type)
                younger.add((name, field.number))
            compared += 1
    assert younger == set(YOUNGER)
    assert compared > 110


def same_field(ours: FieldDescriptor, other: FieldDescriptorProto) -> None:
    assert ours.name == snake(other.name)
    assert ours.type == other.type, ours.full_name
    assert ours.is_repeated == (other.label == FieldDescriptorProto.LABEL_REPEATED), ours.full_name
    if ours.message_type is not None:
        assert ours.message_type.name == other.type_name.rpartition(".")[2]
    assert (ours.containing_oneof is not None) == other.HasField("oneof_index"), ours.full_name


def test_every_enum_value_has_etcds_number() -> None:
    compared = 0
    for message in pb.DESCRIPTOR.message_types_by_name.values():
        for enum in message.enum_types:
            compared += same_enum(enum, their_enum(message, enum))
    assert compared == 19


def their_enum(message: Descriptor, enum: EnumDescriptor) -> EnumDescriptorProto:
    return next(one for one in theirs()[message.name].enum_type if one.name == enum.name)


def same_enum(ours: EnumDescriptor, other: EnumDescriptorProto) -> int:
    prefix = snake(ours.name).upper() + "_"
    numbers = {value.name: value.number for value in other.value}
    for value in ours.values:
        name = value.name.removeprefix(prefix)
        assert numbers[name] == value.number
    return len(ours.values)


def test_every_rpc_exists_in_etcd_with_these_messages() -> None:
    services = {service.name: service for file in etcd3_descriptors() for service in file.service}
    methods = [method for method in vars(wire).values() if isinstance(method, wire.Method)]
    assert len(methods) == 13
    for method in methods:
        service, _, name = method.path.removeprefix("/etcdserverpb.").partition("/")
        theirs_method = next(one for one in services[service].method if one.name == name)
        assert theirs_method.input_type == f".etcdserverpb.{method.request.DESCRIPTOR.name}"
        assert theirs_method.output_type == f".etcdserverpb.{method.response.DESCRIPTOR.name}"
        streams = method in (wire.WATCH, wire.LEASE_KEEP_ALIVE)
        assert (theirs_method.client_streaming, theirs_method.server_streaming) == (streams, streams)


def test_only_reads_and_requests_that_name_their_own_outcome_are_repeated() -> None:
    methods = [method for method in vars(wire).values() if isinstance(method, wire.Method)]
    assert {method.path.rpartition("/")[2] for method in methods if method.repeatable} == {
        "Range",
        "LeaseGrant",
        "LeaseRevoke",
        "LeaseTimeToLive",
        "LeaseLeases",
        "Authenticate",
        "Status",
    }
