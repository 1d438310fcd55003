"""Nothing in the tree knows the machine on which it was written."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

THIS_FILE = Path("tests/repo/hygiene/test_places.py")
MACHINE_PATH = re.compile(r"/work/(main|shared)\b|/root/\.\w|/home/[a-z]\w*/|/Users/|/opt/(wheels|pypi)")
# A registry is reached through the client's configuration, never by its address.
REGISTRY = re.compile(
    r"(?<![\w.-])(deb|snapshot|security)\.debian\.org|pypi\.org/simple|pythonhosted\.org|npmjs\.(org|com)"
)
INDEX_OPTION = re.compile(r"--(extra-)?index-url|--find-links|\[\[tool\.uv\.index\]\]|PIP_INDEX_URL")


def matches(root: Path, paths: list[Path], pattern: re.Pattern[str]) -> list[str]:
    found = []
    for path in paths:
        try:
            text = (root / path).read_text()
        except UnicodeDecodeError:
            continue
        lines = enumerate(text.splitlines(), start=1)
        found += [f"{path}:{number}: {line.strip()[:120]}" for number, line in lines if pattern.search(line)]
    return found


def test_no_file_names_a_path_of_a_developers_machine(root: Path, tree: list[Path]) -> None:
    assert not matches(root, [path for path in tree if path != THIS_FILE], MACHINE_PATH)


def test_no_written_file_names_a_package_registry(root: Path, written: list[Path]) -> None:
    paths = [path for path in written if path != THIS_FILE]
    assert not matches(root, paths, REGISTRY)
    assert not matches(root, paths, INDEX_OPTION)


def test_the_lock_file_knows_only_the_public_index(read: Callable[[str], str]) -> None:
    text = read("uv.lock")
    hosts = set(re.findall(r"https?://([^/\"]+)", text))
    assert hosts == {"pypi.org", "files.pythonhosted.org"}
    local = {"virtual", "editable", "registry"}
    sources = {key for package in tomllib.loads(text)["package"] for key in package["source"]}
    assert sources <= local, "a package from a path or a git repository cannot be installed elsewhere"


def test_every_grpc_package_is_locked_at_one_version(read: Callable[[str], str]) -> None:
    locked = {
        package["name"]: package.get("version") for package in tomllib.loads(read("uv.lock"))["package"]
    }
    satellites = ["grpcio-health-checking", "grpcio-reflection", "grpcio-status", "grpcio-tools"]
    assert {locked[name] for name in satellites} == {locked["grpcio"]}
    # The one satellite that is not released with every patch; its minor version must agree.
    assert str(locked["grpcio-channelz"]).rpartition(".")[0] == str(locked["grpcio"]).rpartition(".")[0]


def test_the_makefile_explains_every_verb(read: Callable[[str], str]) -> None:
    makefile = read("Makefile")
    verbs = re.findall(r"^\.PHONY: ([\w-]+)$", makefile, re.MULTILINE)
    explained = re.findall(r"^([\w-]+):.*## \w", makefile, re.MULTILINE)
    assert len(verbs) > 10
    assert verbs == explained


def test_every_make_verb_that_is_mentioned_exists(
    root: Path, written: list[Path], read: Callable[[str], str]
) -> None:
    verbs = set(re.findall(r"^([\w-]+):.*## \w", read("Makefile"), re.MULTILINE))
    mentioned = {
        verb: str(path)
        for path in written
        if path.suffix in {".md", ".py", ".sh", ".toml"} and path != THIS_FILE
        for verb in re.findall(r"`make ([a-z][a-z0-9-]*)", (root / path).read_text())
    }
    assert not {verb: path for verb, path in mentioned.items() if verb not in verbs}
