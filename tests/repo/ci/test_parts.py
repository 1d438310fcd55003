"""The scripts that say whether a change may land, made to fail in each of their ways."""

import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = """
setup check unit contract integration e2e demo:
\t@echo doing $@; test ! -e fail-$@
test:
\t@.ci/parts install check unit
"""


@pytest.fixture
def checkout(root: Path, tmp_path: Path) -> Path:
    """A tree with the real scripts, and a Makefile whose verbs fail where a file says so."""
    shutil.copytree(root / ".ci", tmp_path / ".ci")
    (tmp_path / "Makefile").write_text(MAKEFILE)
    return tmp_path


def run(checkout: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=checkout, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def pretend_pytest(checkout: Path, *, says: str, status: int) -> None:
    program = checkout / ".venv/bin/pytest"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho '{says}'\nexit {status}\n")
    program.chmod(0o755)


def test_all_parts_pass_and_each_time_is_given(checkout: Path) -> None:
    done = run(checkout, ".ci/parts", "install", "check")
    assert done.returncode == 0, done.stderr
    table = done.stdout.rpartition("time of each part")[2].split("\n")
    assert [line.split()[:2] for line in table if line.strip()] == [
        ["install", "passed"],
        ["check", "passed"],
    ]
    assert "of   300 s" in done.stdout


def test_a_failed_part_fails_the_run_and_the_later_parts_still_run(checkout: Path) -> None:
    (checkout / "fail-check").touch()
    done = run(checkout, ".ci/parts", "install", "check", "unit")
    assert done.returncode == 1
    assert "doing unit" in done.stdout
    assert "failed: check" in done.stderr


def test_nothing_runs_after_a_failed_installation(checkout: Path) -> None:
    (checkout / "fail-setup").touch()
    done = run(checkout, ".ci/parts", "install", "check")
    assert done.returncode == 1
    assert "doing check" not in done.stdout


@pytest.mark.parametrize("broken", ["check", "demo"])
def test_continuous_integration_fails_with_any_part(checkout: Path, broken: str) -> None:
    assert run(checkout, "bash", ".ci/run").returncode == 0
    (checkout / f"fail-{broken}").touch()
    done = run(checkout, "bash", ".ci/run")
    assert done.returncode == 1
    times = done.stdout.rpartition("##### time of each part")[2]
    assert all(part in times for part in ("install", "check", "unit", "demo"))


def test_continuous_integration_ends_with_the_suites_own_closing_lines(checkout: Path) -> None:
    tests = checkout / "tests/unit/sample/test_sample.py"
    tests.parent.mkdir(parents=True)
    tests.touch()
    closing = "=========== 3 passed, 1 skipped in 0.42s ==========="
    pretend_pytest(checkout, says=closing, status=0)
    (checkout / "Makefile").write_text(MAKEFILE.replace("echo doing $@", "[ $@ != unit ] || .ci/suite unit"))
    done = run(checkout, "bash", ".ci/run")
    assert done.returncode == 0, done.stderr
    assert f"unit:\n{closing}" in done.stdout.rpartition("test suites")[2]


def test_a_suite_without_test_files_passes_and_says_so(checkout: Path) -> None:
    pretend_pytest(checkout, says="no tests ran", status=5)
    done = run(checkout, ".ci/suite", "e2e")
    assert done.returncode == 0
    assert "tests/e2e holds no tests yet" in done.stdout


@pytest.mark.parametrize(("status", "word"), [(5, "collected no test"), (1, "tests/unit failed")])
def test_a_suite_with_test_files_fails_when_pytest_does(checkout: Path, status: int, word: str) -> None:
    tests = checkout / "tests/unit/test_sample.py"
    tests.parent.mkdir(parents=True)
    tests.touch()
    pretend_pytest(checkout, says="words of pytest", status=status)
    done = run(checkout, ".ci/suite", "unit")
    assert done.returncode == status
    assert word in done.stderr
    assert "words of pytest" in (checkout / "build/suites/unit.log").read_text()
