"""What a lab remembers."""

from __future__ import annotations

from pathlib import Path

import pytest
from remuda_lab.errors import LabError, WaitTimeout
from remuda_lab.layout import LabPaths
from remuda_lab.processes import ProcessRef
from remuda_lab.state import LabState, lab_lock, load_state, save_state
from remuda_lab.waiting import wait_for


def test_a_state_survives_its_file(tmp_path: Path) -> None:
    paths = LabPaths(root=tmp_path / "lab")
    state = LabState(
        host_count=2,
        fabric=ProcessRef(pid=10, started=20),
        hosts={"host1": ProcessRef(pid=11, started=21)},
        forwards={"api": 7443},
        tcp=True,
    )
    save_state(paths, state)
    assert load_state(paths) == state


def test_no_file_is_an_empty_state(tmp_path: Path) -> None:
    assert load_state(LabPaths(root=tmp_path)) == LabState()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"host_count": 1, "fabric": {"pid": 1}, "hosts": {}}']
)
def test_a_damaged_file_says_how_to_go_on(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(LabError, match="down --force"):
        load_state(LabPaths(root=tmp_path))


def test_a_second_holder_of_the_lock_is_refused(tmp_path: Path) -> None:
    with lab_lock(tmp_path / "lock"), pytest.raises(LabError, match="another remuda-lab"):  # noqa: SIM117
        with lab_lock(tmp_path / "lock"):
            pytest.fail("two holders")
    with lab_lock(tmp_path / "lock"):
        assert (tmp_path / "lock").exists()


def test_a_wait_says_what_it_waited_for_and_what_it_saw() -> None:
    with pytest.raises(WaitTimeout, match=r"the moon: not so after 0 s; last seen: 'half'"):
        wait_for("the moon", lambda: None, timeout=0, status=lambda: repr("half"))


def test_a_failing_probe_is_the_last_status() -> None:
    def probe() -> bool:
        raise OSError("no route")

    with pytest.raises(WaitTimeout, match="OSError: no route"):
        wait_for("it", probe, timeout=0)


def test_a_recycled_pid_is_not_the_process_that_was_meant() -> None:
    myself = ProcessRef.of(1)
    assert myself.alive()
    assert not ProcessRef(pid=1, started=myself.started + 1).alive()
