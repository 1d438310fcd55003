"""docs/reliability.md tells of every crash test, and of nothing that is not tested."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from remuda_lab.faults.outcome_rows import OUTCOME_ROWS
from remuda_lab.faults.table import Row, read

CRASHES = Path("tests/e2e/crashes")


@pytest.fixture(scope="module")
def rows(root: Path) -> list[Row]:
    return read(root / "docs/reliability.jsonl")


def faults(path: Path, module: ast.Module) -> Iterator[tuple[str, str, str]]:
    """Each test with what its mark says is broken, and where."""
    for node in module.body:
        if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
            continue
        said = {"what": "", "when": ""}
        for mark in node.decorator_list:
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                said |= {word.arg: ast.literal_eval(word.value) for word in mark.keywords if word.arg}
        yield f"{path}::{node.name}", said["what"], said["when"]


def test_every_crash_test_has_its_row_and_every_row_its_test(
    rows: list[Row], syntax: Mapping[Path, ast.Module]
) -> None:
    tested = {
        fault
        for path, module in syntax.items()
        if path.is_relative_to(CRASHES)
        for fault in faults(path, module)
    }
    assert tested
    assert {(row.test, row.fault, row.point) for row in rows} == tested, "run `make reliability`"


def test_every_outcome_has_been_produced_for_real(rows: list[Row]) -> None:
    produced = {index for row in rows for index in row.produced}
    missing = [row for index, row in enumerate(OUTCOME_ROWS) if index not in produced]
    assert not missing


def test_no_fault_has_left_anything_behind(rows: list[Row]) -> None:
    assert {row.left for row in rows} == {"nothing"}
