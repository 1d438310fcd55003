"""``remuda-lab up`` as a person uses it: what it prints works as it stands."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from remuda_lab.python import console_script
from remuda_lab.sweep import machine_interfaces
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


def runnable(line: str) -> bool:
    """Not what takes the lab down, and not what is no part of the project."""
    foreign = line.startswith("grpcurl") and shutil.which("grpcurl") is None
    return not foreign and not line.endswith(" down")


def run(argv: list[str], place: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        cwd=place,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_the_lines_that_up_prints_reach_the_cluster_and_down_leaves_nothing(workplace: Path) -> None:
    interfaces = machine_interfaces()
    up = lab(workplace, "up", "--hosts", "1")
    assert up.returncode == 0, up.stdout + up.stderr
    assert "is up after" in up.stdout
    first, *lines = [line.removeprefix("  ") for line in up.stdout.splitlines() if line.startswith("  ")]
    answers = {line: run(["sh", "-ec", f"{first}\n{line}"], workplace) for line in lines if runnable(line)}
    assert {line: done.stderr for line, done in answers.items() if done.returncode} == {}
    said = [done.stdout for done in answers.values()]
    assert any('"STATE_UP"' in text for text in said), "buf curl with the certificate"
    assert any(text.split() == ["{}"] for text in said), "buf curl with the token: no instances yet"
    assert "host1" in answers["remuda host list"].stdout

    status = lab(workplace, "status")
    assert "fabric/api: pid" in status.stdout
    assert "host1/agent: pid" in status.stdout
    again = lab(workplace, "up")
    assert (again.returncode, "is up already" in again.stderr) == (1, True)
    assert lab(workplace, "restart", "scheduler-1").returncode == 0
    assert lab(workplace, "restart", "host1").returncode == 0
    assert "started 2 times" in lab(workplace, "status").stdout
    refused = lab(workplace, "facts", "host1", "libvirt_versions=8000000")
    assert (refused.returncode, "libvirt_versions" in refused.stderr) == (1, True), refused.stderr
    lying = lab(workplace, "facts", "host1", "libvirt_version=8000000", 'cpu_missing_features=["avx2"]')
    assert "libvirt_version, cpu_missing_features overridden" in lying.stdout, lying.stderr
    assert "nothing overridden" in lab(workplace, "facts", "host1").stdout

    down = lab(workplace, "down")
    assert down.returncode == 0, down.stderr
    assert not (workplace / ".lab" / "default").exists()
    assert machine_interfaces() == interfaces
    assert processes_of(workplace) == []


def processes_of(place: Path) -> list[str]:
    """Command lines that name this lab's directory."""
    lines = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        # A process may end while it is looked at.
        with suppress(OSError):
            lines.append(process.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in lines if str(place) in line]
