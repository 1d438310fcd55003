"""The `etcd3` package 0.12.0 made importable, as a stand-in for any third-party etcd client.

Its generated modules predate protobuf 4 and raise TypeError on import. The file descriptors inside them are
still good: they are read out of the source (which is never executed) and turned into message classes in a
descriptor pool of their own. Nothing is written, and no private interface of protobuf is used.
"""

import ast
import importlib
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

# In the order in which they import each other.
_FILES = ("kv", "auth", "rpc")


@cache
def etcd3_descriptors() -> tuple[FileDescriptorProto, ...]:
    """etcd's own protocol as the package carries it: kv, auth, rpc."""
    spec = find_spec("etcd3")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("the package etcd3 is not installed")
    directory = Path(spec.submodule_search_locations[0]) / "etcdrpc"
    return tuple(_descriptor(directory / f"{name}_pb2.py") for name in _FILES)


@cache
def import_etcd3() -> ModuleType:
    """The package, ready for use."""
    pool = descriptor_pool.DescriptorPool()
    for proto in etcd3_descriptors():
        pool.AddSerializedFile(proto.SerializeToString())
        module = _messages(pool, proto)
        # `from .rpc_pb2 import *` in the package takes what stands here, and never reads the stale file.
        sys.modules[module.__name__] = module
    return importlib.import_module("etcd3")


def _descriptor(generated: Path) -> FileDescriptorProto:
    """The argument of `serialized_pb=_b('...')`."""
    for node in ast.walk(ast.parse(generated.read_text("utf-8"))):
        match node:
            case ast.keyword(arg="serialized_pb", value=ast.Call(args=[ast.Constant(value=str(text))])):
                return FileDescriptorProto.FromString(text.encode("latin1"))
    raise RuntimeError(f"no descriptor in {generated}")


def _messages(pool: descriptor_pool.DescriptorPool, proto: FileDescriptorProto) -> ModuleType:
    """What protoc would have generated for the file."""
    module = ModuleType(f"etcd3.etcdrpc.{proto.name.removesuffix('.proto')}_pb2")
    file = pool.FindFileByName(proto.name)
    for name, message in file.message_types_by_name.items():
        setattr(module, name, message_factory.GetMessageClass(message))
    for name, enum in file.enum_types_by_name.items():
        setattr(module, name, EnumTypeWrapper(enum))
        for value in enum.values:
            setattr(module, value.name, value.number)
    return module
