"""What is made of a crash: how many copies ran, which outcome it shows, and its row."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from remuda_lab.faults.copies import CopyWatch
from remuda_lab.faults.move import Judgement
from remuda_lab.faults.outcome_rows import OUTCOME_ROWS, rows_shown
from remuda_lab.faults.table import Row, append, read, render
from remuda_lab.lab import Lab
from remuda_lab.layout import lab_paths

ROW = Row(
    test="tests/e2e/crashes/test_x.py::test_that_it_stays",
    fault="target QEMU SIGKILL",
    point="memory phase",
    result="FAILED MIGRATION_FAILED",
    outcomes=("WAIT", "STAYED"),
    guest="source, running",
    seconds=1.25,
    silence=0.25,
    memory="1 → 9",
    copies=1,
    left="nothing",
    rows=(2,),
)


@pytest.mark.parametrize(
    ("windows", "copies"),
    [
        ([{"a"}, {"a", "b"}, {"b"}], 1),
        ([{"a"}, {"a", "b"}, {"a", "b"}, {"b"}], 2),
        ([{"a"}, set(), {"b"}], 0),
        ([], 0),
    ],
)
def test_a_guest_that_moves_within_a_window_did_not_run_twice(windows: list[set[str]], copies: int) -> None:
    watch = CopyWatch(Lab(lab_paths("none")), "uid", windows=[frozenset(one) for one in windows])
    assert watch.at_once == copies


@pytest.mark.parametrize(
    ("outcome", "source", "target", "expected"),
    [
        ("MOVED", "PAUSED, MIGRATION, job NONE, persistent", "RUNNING, MIGRATION, job NONE, persistent", {0}),
        ("MOVED", "UNREACHABLE", "RUNNING, MIGRATION, job NONE, persistent", {0, 1}),
        ("STAYED", "RUNNING, OTHER, job NONE, persistent", "ABSENT", {2}),
        ("STAYED", "RUNNING, OTHER, job NONE, persistent", "UNREACHABLE", {3}),
        ("JOIN", "RUNNING, OTHER, job OUT, persistent", "PAUSED, MIGRATION, job IN", {4}),
        ("WAIT", "PAUSED, MIGRATION, job NONE, persistent", "UNREACHABLE", {5}),
        ("WAIT", "RUNNING, OTHER, job OUT, persistent", "UNREACHABLE", set()),
        ("SPLIT", "RUNNING, OTHER, job NONE", "RUNNING, MIGRATION, job NONE", {6}),
        ("GUEST_STOPPED", "SHUTOFF, SHUTDOWN, job NONE, persistent", "ABSENT", {7}),
        ("GUEST_LOST", "CRASHED, CRASHED, job NONE, persistent", "ABSENT", {8}),
        ("WAIT", "UNREACHABLE", "UNREACHABLE", {9}),
    ],
)
def test_a_judgement_is_an_example_of_its_row(
    outcome: str, source: str, target: str, expected: set[int]
) -> None:
    judged = Judgement(time=datetime.now(UTC), outcome=outcome, source=source, target=target)
    assert set(rows_shown([judged])) == expected


def test_the_last_row_of_a_test_counts_and_keeps_its_place(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "rows.jsonl"
    other = replace(ROW, test="tests/e2e/crashes/test_a.py::test_another")
    again = replace(ROW, seconds=2.0)
    for row in (ROW, other, again):
        append(file, row)
    assert read(file) == [again, other]


def test_what_was_judged_before_the_fault_is_not_its_work() -> None:
    assert replace(ROW, outcomes=("MOVED",), rows=(0, 2)).produced == (0,)


def test_the_tables_tell_of_every_row_and_name_outcomes_that_are_missing() -> None:
    text = render([ROW])
    assert (
        "| target QEMU SIGKILL | memory phase | FAILED MIGRATION_FAILED | WAIT → STAYED | source, running "
        "| 1.2 s | 0.2 s | 1 → 9 | 1 | nothing | `test_that_it_stays` |" in text
    )
    assert text.count("not produced") == len(OUTCOME_ROWS) - 1
    means = "failed cleanly, or begun again when nobody knows how the job ended"
    assert f"| `STAYED` | {means} | `test_that_it_stays` |" in text
