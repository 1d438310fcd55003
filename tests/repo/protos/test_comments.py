"""Everything that a caller can name in the protocol is explained where it is declared."""

from collections.abc import Iterator

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

# etcd's own protocol, documented by etcd.
FOREIGN = ("remuda/etcd/",)

# Field numbers in descriptor.proto, of which the paths in SourceCodeInfo consist.
FILE_MESSAGE, FILE_ENUM, FILE_SERVICE = 4, 5, 6
MESSAGE_FIELD, MESSAGE_NESTED, MESSAGE_ENUM = 2, 3, 4
ENUM_VALUE = 2
SERVICE_METHOD = 2

Path = tuple[int, ...]


def enum_elements(enum: EnumDescriptorProto, path: Path, scope: str) -> Iterator[tuple[Path, str]]:
    name = f"{scope}.{enum.name}"
    yield path, name
    for index, value in enumerate(enum.value):
        yield (*path, ENUM_VALUE, index), f"{name}.{value.name}"


def message_elements(message: DescriptorProto, path: Path, scope: str) -> Iterator[tuple[Path, str]]:
    if message.options.map_entry:
        return
    name = f"{scope}.{message.name}"
    yield path, name
    for index, field in enumerate(message.field):
        yield (*path, MESSAGE_FIELD, index), f"{name}.{field.name}"
    for index, nested in enumerate(message.nested_type):
        yield from message_elements(nested, (*path, MESSAGE_NESTED, index), name)
    for index, enum in enumerate(message.enum_type):
        yield from enum_elements(enum, (*path, MESSAGE_ENUM, index), name)


def elements(file: FileDescriptorProto) -> Iterator[tuple[Path, str]]:
    """Everything in a file that must carry a comment, with its place in the source information."""
    for index, message in enumerate(file.message_type):
        yield from message_elements(message, (FILE_MESSAGE, index), file.package)
    for index, enum in enumerate(file.enum_type):
        yield from enum_elements(enum, (FILE_ENUM, index), file.package)
    for index, service in enumerate(file.service):
        yield (FILE_SERVICE, index), f"{file.package}.{service.name}"
        for number, method in enumerate(service.method):
            yield (
                (FILE_SERVICE, index, SERVICE_METHOD, number),
                f"{file.package}.{service.name}/{method.name}",
            )


def own(image: FileDescriptorSet) -> list[FileDescriptorProto]:
    return [f for f in image.file if f.name.startswith("remuda/") and not f.name.startswith(FOREIGN)]


def test_every_rpc_message_field_and_value_has_a_comment(image: FileDescriptorSet) -> None:
    files = own(image)
    assert files, "no .proto files below protos/remuda yet"
    silent = []
    for file in files:
        comments = {
            tuple(location.path): location.leading_comments.strip() or location.trailing_comments.strip()
            for location in file.source_code_info.location
        }
        silent += [f"{file.name}: {name}" for path, name in elements(file) if not comments.get(path)]
    assert not silent
