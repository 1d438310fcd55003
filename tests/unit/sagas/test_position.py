"""Where a saga stands, read from its journal."""

from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from remuda.compute.v1.operation_pb2 import OperationMetadata, OperationStep
from remuda.store.v1.operation_pb2 import Journal, OperationRecord
from remuda_core.ids import HostId
from remuda_scheduler.engine import position
from remuda_scheduler.engine.saga import Ending, Saga, Step, Unreachable

RUNNING, DONE, FAILED = OperationStep.STATE_RUNNING, OperationStep.STATE_DONE, OperationStep.STATE_FAILED
UNDOING, UNDONE, OWED = OperationStep.STATE_UNDOING, OperationStep.STATE_UNDONE, OperationStep.STATE_OWED
HOST = HostId("host")


async def nothing(*_: Any) -> Ending:
    return Ending()


async def step_body(_: Any) -> None:
    return


SAGA: Saga[OperationRecord] = Saga(
    action="Test",
    state=OperationRecord,
    steps=(
        Step(name="a", do=step_body),
        Step(name="b", do=step_body),
        Step(name="c", do=step_body, unreachable=Unreachable.OWE),
    ),
    succeed=nothing,
    fail=nothing,
)


def journal(*entries: tuple[str, OperationStep.State.ValueType], retry_from: str = "") -> Journal:
    made = Journal(retry_from=retry_from)
    for step, state in entries:
        made.entries.add(step=step, state=state, host_id=HOST)
    return made


def next_name(made: Journal) -> str:
    step = position.next_step(SAGA, made)
    return "" if step is None else step.name


def test_a_saga_begins_with_its_first_step() -> None:
    assert next_name(journal()) == "a"


def test_a_step_that_was_open_when_the_leader_died_is_the_next_one() -> None:
    assert next_name(journal(("a", DONE), ("b", RUNNING))) == "b"


def test_a_saga_is_complete_when_every_step_is() -> None:
    assert next_name(journal(("a", DONE), ("b", DONE), ("c", DONE))) == ""


def test_a_step_that_may_be_owed_is_complete_as_a_debt() -> None:
    assert next_name(journal(("a", DONE), ("b", DONE), ("c", OWED))) == ""


def test_a_step_whose_undo_is_owed_is_begun_again() -> None:
    assert next_name(journal(("a", DONE), ("b", OWED))) == "b"


def test_undoing_goes_from_the_newest_entry_to_the_oldest() -> None:
    made = journal(("a", DONE), ("b", DONE), ("c", FAILED))
    order = []
    while (index := position.next_undo(made)) >= 0:
        order.append(made.entries[index].step)
        made.entries[index].state = UNDONE
    assert order == ["c", "b", "a"]


def test_an_undo_that_was_open_when_the_leader_died_is_taken_up() -> None:
    assert position.next_undo(journal(("a", DONE), ("b", UNDOING), ("c", UNDONE))) == 1


def test_a_debt_is_not_undone_again() -> None:
    assert position.next_undo(journal(("a", UNDONE), ("b", OWED))) == -1


def test_going_back_for_another_try_undoes_only_from_that_step_on() -> None:
    made = journal(("a", DONE), ("b", DONE), ("c", FAILED), retry_from="b")
    assert position.next_undo(made) == 2
    made.entries[2].state = UNDONE
    assert position.next_undo(made) == 1
    made.entries[1].state = UNDONE
    assert position.next_undo(made) == -1
    assert next_name(made) == "b"


def test_a_second_try_has_entries_of_its_own() -> None:
    made = journal(("a", DONE), ("b", UNDONE), ("c", UNDONE), ("b", DONE), ("c", RUNNING))
    assert next_name(made) == "c"
    assert position.times_begun(made, "b") == 2
    assert position.last_entry(made, "b") == 3


def test_steps_in_the_metadata_follow_the_journal() -> None:
    made, metadata, time = Journal(), OperationMetadata(), Timestamp(seconds=7)
    position.open_step(made, metadata, "a", HOST, time)
    assert (metadata.phase, metadata.steps[0].host, metadata.state) == (
        "a",
        "hosts/host",
        OperationMetadata.STATE_RUNNING,
    )
    position.mark(made, metadata, 0, DONE, time)
    assert metadata.steps[0].end_time == time
    position.open_step(made, metadata, "b", HostId(""), time)
    position.take_back_open(made, metadata)
    assert [step.name for step in metadata.steps] == [entry.step for entry in made.entries] == ["a"]
    assert position.hosts_named(made) == {HOST}
