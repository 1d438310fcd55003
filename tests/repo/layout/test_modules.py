"""How the tree is cut into modules."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

NAMES_THAT_SAY_NOTHING = {"utils", "util", "common", "helpers", "helper", "misc", "shared", "base"}
MAX_LINES = 500
APART = {
    "remuda_api": "services/api",
    "remuda_scheduler": "services/scheduler",
    "remuda_agent": "services/agent",
    "remuda_image_store": "services/image-store",
    "remuda_cli": "cli",
    "remuda_lab": "lab",
}


def imported(module: ast.Module) -> Iterator[str]:
    """Names of the top-level packages that a file imports, inside functions too."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def test_no_module_has_a_name_that_says_nothing(syntax: Mapping[Path, ast.Module]) -> None:
    offenders = [path for path in syntax if {*path.parts[:-1], path.stem} & NAMES_THAT_SAY_NOTHING]
    assert not offenders, "name a module after the one thing it holds"


@pytest.mark.parametrize("package", APART)
def test_services_cli_and_lab_do_not_import_each_other(
    package: str, syntax: Mapping[Path, ast.Module]
) -> None:
    home = Path(APART[package], "src")
    foreign = set(APART) - {package}
    offenders = {
        str(path): sorted(found)
        for path, module in syntax.items()
        if path.is_relative_to(home) and (found := foreign & set(imported(module)))
    }
    assert not offenders, "what two of them need belongs into remuda_core, or behind an rpc"


def test_core_imports_no_service(syntax: Mapping[Path, ast.Module]) -> None:
    offenders = {
        str(path): sorted(found)
        for path, module in syntax.items()
        if path.is_relative_to("core/src") and (found := set(APART) & set(imported(module)))
    }
    assert not offenders


def test_no_written_file_is_longer_than_a_room(root: Path, written: list[Path]) -> None:
    code = {".py", ".proto", ".sh", ".toml"}
    long = {
        str(path): lines
        for path in written
        if path.suffix in code and (lines := len((root / path).read_text().splitlines())) > MAX_LINES
    }
    assert not long, f"over {MAX_LINES} lines: look for the second responsibility"


def test_every_source_package_says_that_it_is_typed(root: Path) -> None:
    packages = [*root.glob("core/src/*"), *root.glob("services/*/src/*"), *root.glob("*/src/remuda_*")]
    untyped = [str(p.relative_to(root)) for p in packages if p.is_dir() and not (p / "py.typed").exists()]
    assert packages
    assert not untyped


def test_every_test_is_where_pytest_finds_it(syntax: Mapping[Path, ast.Module]) -> None:
    """A test in a file that pytest's pattern misses, or in no suite, would never run."""
    suites = {"unit", "contract", "integration", "e2e", "repo"}
    stray = [
        path
        for path, module in syntax.items()
        if any(
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
            for node in module.body
        )
        and not (path.parts[0] == "tests" and path.parts[1] in suites and path.name.startswith("test_"))
    ]
    assert not stray
