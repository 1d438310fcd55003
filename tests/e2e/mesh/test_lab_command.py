"""``remuda-lab up`` as a person uses it: what it prints works as it stands."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from remuda_lab.python import console_script
from remuda_lab.testing import require_root

pytestmark = pytest.mark.root


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Path]:
    require_root()
    yield tmp_path
    lab(tmp_path, "down")


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """This lab is another one: it is proven gone by its own `down`."""


def lab(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run([console_script("remuda-lab"), *arguments], place)


def run(argv: list[str], place: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(console_script('buf')).parent}:{os.environ['PATH']}"
    return subprocess.run(
        argv,
        cwd=place,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PATH": path},
    )


def test_the_lines_that_up_prints_reach_the_cluster_and_down_leaves_nothing(workplace: Path) -> None:
    up = lab(workplace, "up", "--hosts", "1")
    assert up.returncode == 0, up.stdout + up.stderr
    assert "is up after" in up.stdout
    lines = [line.removeprefix("  ") for line in up.stdout.splitlines() if line.startswith("  ")]
    cli = "\n".join(line for line in lines if line.startswith((". ", "remuda host")))
    listed = run(["sh", "-ec", cli], workplace)
    assert "host1" in listed.stdout, listed.stderr
    buf = "\n".join(line for line in lines if line.startswith(("buf curl", "  ")))
    called = run(["sh", "-ec", buf], workplace)
    assert '"STATE_UP"' in called.stdout, called.stderr

    status = lab(workplace, "status")
    assert "fabric/api: pid" in status.stdout
    assert "host1/agent: pid" in status.stdout
    again = lab(workplace, "up")
    assert (again.returncode, "is up already" in again.stderr) == (1, True)
    assert lab(workplace, "restart", "scheduler-1").returncode == 0
    assert lab(workplace, "restart", "host1").returncode == 0
    assert "started 2 times" in lab(workplace, "status").stdout

    down = lab(workplace, "down")
    assert down.returncode == 0, down.stderr
    assert not (workplace / ".lab" / "default").exists()
