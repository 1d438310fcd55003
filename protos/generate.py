#!/usr/bin/env python3
"""Turns protos/remuda/**/*.proto into Python, type stubs and one descriptor image.

Imports of third-party files (google/..., buf/...) are answered with the descriptors that the installed
wheels carry at run time, handed to protoc as one descriptor set. Reasons: no third-party proto text is
copied into the tree; what protoc saw is exactly what the process will load; and the wheel of
googleapis-common-protos keeps google/longrunning/operations.proto under another file name, so that an
include path into site-packages would register the same messages twice under two names.
"""

import argparse
import filecmp
import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import protovalidate
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

PROTOS = Path(__file__).resolve().parent
SOURCES = "remuda"

# What the sources may import, by the module that registers it. `operations_pb2` is the module that
# generated code imports; it re-exports the wheel's misnamed `operations_proto_pb2`.
RUNTIME_MODULES = (
    "google.api.field_behavior_pb2",
    "google.api.resource_pb2",
    "google.longrunning.operations_pb2",
    "google.protobuf.any_pb2",
    "google.protobuf.duration_pb2",
    "google.protobuf.empty_pb2",
    "google.protobuf.field_mask_pb2",
    "google.protobuf.struct_pb2",
    "google.protobuf.timestamp_pb2",
    "google.protobuf.wrappers_pb2",
    "google.rpc.code_pb2",
    "google.rpc.error_details_pb2",
    "google.rpc.status_pb2",
)
ROOT_FILES = tuple(module.replace(".", "/").removesuffix("_pb2") + ".proto" for module in RUNTIME_MODULES)
VALIDATE = "buf/validate/validate.proto"


def third_party() -> FileDescriptorSet:
    """Every importable third-party file and what it imports, dependencies first."""
    for module in RUNTIME_MODULES:
        importlib.import_module(module)
    pool = descriptor_pool.Default()
    # protovalidate registers its options with a runtime of its own, not with google.protobuf's pool.
    # Parsed against the default pool its custom options stay unknown fields, which survive untouched.
    validate = FileDescriptorProto.FromString(protovalidate.ViolationPb.desc().file.proto.to_binary())
    ordered: dict[str, FileDescriptorProto] = {}

    def add(proto: FileDescriptorProto) -> None:
        for dependency in proto.dependency:
            if dependency not in ordered:
                add(from_pool(dependency))
        ordered[proto.name] = proto

    def from_pool(name: str) -> FileDescriptorProto:
        proto = FileDescriptorProto()
        pool.FindFileByName(name).CopyToProto(proto)
        return proto

    for name in ROOT_FILES:
        if name not in ordered:
            add(from_pool(name))
    add(validate)
    return FileDescriptorSet(file=ordered.values())


def sources(root: Path) -> list[str]:
    """The .proto files below `root`, as protoc names them."""
    return sorted(path.relative_to(root).as_posix() for path in (root / SOURCES).rglob("*.proto"))


def protoc(arguments: Iterable[str]) -> None:
    """Runs the wheel's protoc; its complaints go to stderr as they are."""
    scripts = Path(sys.executable).parent
    command = [sys.executable, "-m", "grpc_tools.protoc", *arguments]
    environment = os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}"}
    if subprocess.run(command, env=environment, check=False).returncode:
        sys.exit("protoc refused the sources: its words are above")


def build_image(root: Path, image: Path) -> None:
    """Writes the descriptor set that buf reads: all sources, their imports, and the comments."""
    with tempfile.TemporaryDirectory() as scratch:
        protoc(
            [
                *inputs(root, Path(scratch)),
                "--include_imports",
                "--include_source_info",
                f"--descriptor_set_out={image}",
                *sources(root),
            ]
        )


def inputs(root: Path, scratch: Path) -> list[str]:
    """Where protoc looks: the descriptor set for third parties, then `root` for the sources."""
    descriptors = scratch / "third_party.binpb"
    descriptors.write_bytes(third_party().SerializeToString(deterministic=True))
    return [f"--descriptor_set_in={descriptors}", f"--proto_path={root}"]


def serving(protos: Iterable[FileDescriptorProto]) -> list[str]:
    """The files that define a service; the others would get empty grpc modules."""
    return [proto.name for proto in protos if proto.service]


def generate(root: Path, out: Path) -> None:
    """Fills `out`/gen (imported at run time) and `out`/stubs (read by mypy only)."""
    gen, stubs = out / "gen", out / "stubs"
    gen.mkdir(parents=True)
    stubs.mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        search = inputs(root, Path(scratch))
        parsed = Path(scratch) / "sources.binpb"
        messages = [f"--python_out={gen}", f"--mypy_out=quiet:{gen}"]
        protoc([*search, *messages, f"--descriptor_set_out={parsed}", *sources(root)])
        if served := serving(FileDescriptorSet.FromString(parsed.read_bytes()).file):
            protoc([*search, f"--grpc_python_out={gen}", f"--mypy_grpc_out=quiet:{gen}", *served])
        # The options module of protovalidate for google.protobuf's runtime: its wheel has none.
        protoc([*search, *messages, VALIDATE])
        # googleapis-common-protos is untyped.
        untyped = [
            file
            for file in third_party().file
            if file.name != VALIDATE and not file.name.startswith("google/protobuf/")
        ]
        protoc([*search, f"--mypy_out=quiet:{stubs}", *(file.name for file in untyped)])
        protoc([*search, f"--mypy_grpc_out=quiet:{stubs}", *serving(untyped)])
    for package in (gen / "remuda", gen / "buf"):
        package.mkdir(exist_ok=True)
        (package / "py.typed").touch()


def files(root: Path) -> Iterator[Path]:
    """The generated files below `root`, relative to it; byte code is not one."""
    for top in ("gen", "stubs"):
        for path in sorted((root / top).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(root)


def differences(fresh: Path, tree: Path) -> list[str]:
    """What `make gen` would do to the tree, one line each."""
    wanted, present = set(files(fresh)), set(files(tree))
    return sorted(
        [f"stale, to be removed: {name}" for name in present - wanted]
        + [f"missing: {name}" for name in wanted - present]
        + [
            f"differs: {name}"
            for name in wanted & present
            if not filecmp.cmp(fresh / name, tree / name, shallow=False)
        ]
    )


def install(fresh: Path, tree: Path) -> None:
    """Brings the tree to what `fresh` holds; equal files keep their time stamps."""
    wanted = set(files(fresh))
    for name in set(files(tree)) - wanted:
        (tree / name).unlink()
    for name in wanted:
        target = tree / name
        if not target.exists() or not filecmp.cmp(fresh / name, target, shallow=False):
            target.parent.mkdir(parents=True, exist_ok=True)
            # Renamed into place: other processes import these modules while we write them.
            staged = target.with_name(f".{target.name}.new")
            staged.write_bytes((fresh / name).read_bytes())
            staged.replace(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when gen/ is out of date")
    parser.add_argument("--image", type=Path, help="write the descriptor image for buf here, and stop")
    parser.add_argument("--root", type=Path, default=PROTOS, help="the directory above remuda/")
    parser.add_argument("--out", type=Path, help="the directory of gen/ and stubs/ (default: the root)")
    arguments = parser.parse_args()
    root: Path = arguments.root.resolve()
    if arguments.image:
        build_image(root, arguments.image)
        return
    tree: Path = (arguments.out or root).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch) / "fresh"
        generate(root, fresh)
        changed = differences(fresh, tree)
        if arguments.check:
            print("\n".join(changed) or "generated code is up to date", file=sys.stderr)
            if changed:
                sys.exit("generated code is not what the .proto files say: run `make gen` and commit it")
            return
        install(fresh, tree)
    print(f"{len(sources(root))} proto files; {len(changed)} generated files changed", file=sys.stderr)


if __name__ == "__main__":
    main()
