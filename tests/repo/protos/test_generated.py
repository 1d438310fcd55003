"""The generated code and the third-party modules it imports fit together."""

import importlib
import subprocess
import sys
from pathlib import Path

import protovalidate
from buf.validate import validate_pb2
from google.longrunning import operations_pb2
from google.protobuf import descriptor_pb2, descriptor_pool

GENERATE = "protos/generate.py"


def test_generated_code_is_what_the_proto_files_say(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(root / GENERATE), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_generated_module_imports_without_a_warning(root: Path) -> None:
    gen = root / "protos/gen"
    modules = sorted(".".join(path.relative_to(gen).with_suffix("").parts) for path in gen.rglob("*_pb2*.py"))
    assert modules
    program = "import importlib\n" + "\n".join(f"importlib.import_module({name!r})" for name in modules)
    # In a process of its own: warnings about gencode versions are given once, at the first import.
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_long_running_operations_have_one_name_in_the_pool() -> None:
    """The wheel keeps the file under another name; a second registration would be another type."""
    assert operations_pb2.DESCRIPTOR.name == "google/longrunning/operations.proto"
    found = descriptor_pool.Default().FindMessageTypeByName("google.longrunning.Operation")
    assert operations_pb2.Operation.DESCRIPTOR is found
    for module in ("operations_proto_pb2", "operations_grpc_pb2"):
        other = importlib.import_module(f"google.longrunning.{module}")
        assert other.Operation is operations_pb2.Operation


def test_the_validation_options_are_those_of_the_installed_validator() -> None:
    ours = descriptor_pb2.FileDescriptorProto()
    validate_pb2.DESCRIPTOR.CopyToProto(ours)
    theirs = descriptor_pb2.FileDescriptorProto.FromString(
        protovalidate.ViolationPb.desc().file.proto.to_binary()
    )
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)


def test_a_change_of_a_proto_file_is_noticed(root: Path, tmp_path: Path) -> None:
    source = tmp_path / "remuda/sample/v1/sample.proto"
    source.parent.mkdir(parents=True)
    command = [sys.executable, str(root / GENERATE), "--root", str(tmp_path)]
    text = (
        'syntax = "proto3";\npackage remuda.sample.v1;\n'
        'import "google/longrunning/operations.proto";\nimport "buf/validate/validate.proto";\n'
        "service SampleService { rpc Do(DoRequest) returns (google.longrunning.Operation); }\n"
        "message DoRequest { string a = 1 [(buf.validate.field).string.min_len = 1]; }\n"
    )
    source.write_text(text)
    subprocess.run(command, check=True)
    subprocess.run([*command, "--check"], check=True)
    source.write_text(text.replace("string a = 1", "string b = 1"))
    done = subprocess.run([*command, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "differs: gen/remuda/sample/v1/sample_pb2.py" in done.stderr
    assert "make gen" in done.stderr
    source.rename(source.with_name("renamed.proto"))
    subprocess.run(command, check=True)
    assert (tmp_path / "gen/remuda/sample/v1/renamed_pb2_grpc.pyi").exists()
    assert not (tmp_path / "gen/remuda/sample/v1/sample_pb2.py").exists()
