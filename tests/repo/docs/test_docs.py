"""What the documents name exists, and what is derived from code is what the code says."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from remuda.compute.v1.moving_pb2 import MigrationCheck

# A path of the tree in backquotes, e.g. `services/api/src/remuda_api/main.py`; no globs, no placeholders.
TREE_PATH = re.compile(r"`((?:core|services|cli|lab|protos|tests|docs|deploy|bench)/[\w./-]+)`")
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)[^)]*\)")


@pytest.fixture(scope="module")
def documents(written: list[Path]) -> list[Path]:
    return [path for path in written if path.suffix == ".md"]


def test_every_path_in_the_documents_exists(root: Path, documents: list[Path]) -> None:
    missing = [
        f"{document}: {name}"
        for document in documents
        for name in TREE_PATH.findall((root / document).read_text())
        if not (root / name).exists()
    ]
    assert not missing


def test_every_link_between_documents_resolves(root: Path, documents: list[Path]) -> None:
    broken = [
        f"{document}: {target}"
        for document in documents
        for target in LINK.findall((root / document).read_text())
        if not (root / document.parent / target).exists()
    ]
    assert not broken


def test_the_walk_of_an_operation_passes_proto_handler_saga_and_test(read: Callable[[str], str]) -> None:
    """A newcomer needs three places: what (proto), who (handler), how (saga); and what proves it."""
    stops = TREE_PATH.findall(read("docs/walk-of-an-operation.md"))
    for place in (
        r"^protos/remuda/.*\.proto$",
        r"^services/api/.*\.py$",
        r"/sagas/\w+\.py$",
        r"^tests/.*\.py$",
    ):
        assert any(re.search(place, stop) for stop in stops), f"the walk names no file like {place}"


def test_generated_parts_of_the_documents_are_up_to_date(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(root / "docs/render.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_gives_the_two_commands(read: Callable[[str], str]) -> None:
    readme = read("README.md")
    assert "make test" in readme
    assert "make demo" in readme


@pytest.mark.parametrize("name", ["add-an-rpc", "add-a-state", "add-a-filter", "add-a-saga"])
def test_there_is_a_checklist_for(name: str, read: Callable[[str], str]) -> None:
    text = read(f"docs/checklists/{name}.md")
    steps = re.findall(r"^\d+\. ", text, re.MULTILINE)
    assert 3 <= len(steps) <= 12, "a checklist is short"
    assert TREE_PATH.search(text), "a step says in which file"


def test_decision_records_are_numbered_without_gaps(tree: list[Path]) -> None:
    records = sorted(path.name for path in tree if path.parent == Path("docs/adr"))
    assert records, "no decision is recorded yet"
    assert [int(name[:4]) for name in records] == list(range(1, len(records) + 1))
    assert all(re.fullmatch(r"\d{4}-[a-z0-9-]+\.md", name) for name in records)


def test_every_condition_of_preflight_is_explained(read: Callable[[str], str]) -> None:
    """How it is checked, and what to do."""
    told = re.findall(r"^\| `([A-Z_]+)` \| \S.*\|.*\|$", read("docs/preflight.md"), re.MULTILINE)
    conditions = MigrationCheck.Condition.DESCRIPTOR.values
    assert [one.name.removeprefix("CONDITION_") for one in conditions if one.number] == [
        name for name in told if f"CONDITION_{name}" in set(MigrationCheck.Condition.keys())
    ]
