"""What the rules of the tree look at."""

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def tree() -> list[Path]:
    """Every file that is committed or would be, relative to the root."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        # A checkout that belongs to another user is refused otherwise; only names are read.
        env=os.environ
        | {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"},
        capture_output=True,
        check=True,
    ).stdout.decode()
    return sorted(path for name in listed.split("\0") if name and (ROOT / (path := Path(name))).is_file())


def is_generated(path: Path) -> bool:
    return path.parts[:2] in {("protos", "gen"), ("protos", "stubs")} or path.name == "uv.lock"


@pytest.fixture(scope="session")
def written(tree: list[Path]) -> list[Path]:
    """The files of the tree that people write."""
    return [path for path in tree if not is_generated(path)]


@pytest.fixture(scope="session")
def syntax(written: list[Path]) -> Mapping[Path, ast.Module]:
    """Every hand-written Python file, parsed."""
    return {path: ast.parse((ROOT / path).read_text(), str(path)) for path in written if path.suffix == ".py"}


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> descriptor_pb2.FileDescriptorSet:
    """All .proto files with their comments, as buf sees them."""
    out = tmp_path_factory.mktemp("protos") / "image.binpb"
    subprocess.run([sys.executable, str(ROOT / "protos/generate.py"), "--image", str(out)], check=True)
    return descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())


@pytest.fixture(scope="session")
def read() -> Callable[[str], str]:
    """Reads a file that a rule needs; a missing one fails the rule with its name."""

    def text(name: str) -> str:
        path = ROOT / name
        assert path.is_file(), f"{name} does not exist yet"
        return path.read_text()

    return text
