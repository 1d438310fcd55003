"""The remuda-lab command, as a person uses it."""

from __future__ import annotations

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


def lab(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [console_script("remuda-lab"), *arguments],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_a_lab_is_brought_up_looked_at_broken_and_taken_down(workplace: Path) -> None:
    assert lab(workplace, "status").returncode == 1
    up = lab(workplace, "up", "--bare", "--hosts", "2")
    assert up.returncode == 0, up.stderr
    assert "host1, host2" in up.stdout

    assert lab(workplace, "exec", "host2", "--", "hostname").stdout == "host2\n"
    assert lab(workplace, "exec", "fabric", "false").returncode == 1
    assert lab(workplace, "kill", "host1", "libvirtd", "--signal", "TERM").returncode == 0
    assert lab(workplace, "power-fail", "host2").returncode == 0
    status = lab(workplace, "status").stdout
    assert "host1/libvirtd: pid" in status
    assert "host2 10.77.0.12" in status
    assert "is powered off" in status
    assert lab(workplace, "boot", "host2").returncode == 0
    assert lab(workplace, "cut", "host1", "--guests").returncode == 0
    assert lab(workplace, "heal", "host1").returncode == 0

    down = lab(workplace, "down")
    assert down.returncode == 0, down.stderr
    assert not (workplace / ".lab" / "default").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("exec", "host1", "--", "true"), "`remuda-lab up` starts it"),
        (("boot", "host9"), "is not up"),
        (("--name", "No Name", "up"), "no name for a lab"),
        (("up", "--hosts", "0"), "1 to 99"),
    ],
)
def test_what_cannot_be_done_is_a_sentence_and_status_one(
    workplace: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = lab(workplace, *arguments)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_unit_is_named(workplace: Path) -> None:
    up = lab(workplace, "up", "--bare", "--hosts", "1")
    assert up.returncode == 0, up.stderr
    done = lab(workplace, "kill", "host1", "agent")
    assert (done.returncode, "agent is not running" in done.stderr) == (1, True)
