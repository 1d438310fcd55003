"""Steps are detached jobs: started once, joined after, never stopped by a lost caller."""

import asyncio

import pytest
from google.protobuf.duration_pb2 import Duration
from remuda.agent.v1.agent_pb2 import StepOutput
from remuda.agent.v1.common_pb2 import LeaderRef, StepKey
from remuda.compute.v1.operation_pb2 import Progress
from remuda_agent.jobs import Job, JobTable
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import InstanceId

DO, UNDO = StepKey.DIRECTION_DO, StepKey.DIRECTION_UNDO


def key(
    step: str = "made",
    direction: "StepKey.Direction.ValueType" = DO,
    *,
    instance: str = "i",
    deadline: float = 5.0,
) -> StepKey:
    duration = Duration()
    duration.FromNanoseconds(int(deadline * 1e9))
    return StepKey(
        operation_id="o",
        step=step,
        direction=direction,
        instance_id=instance,
        leader=LeaderRef(epoch=1),
        deadline=duration,
    )


class Gate:
    """Work that waits to be let through, and counts how often it was begun."""

    def __init__(self) -> None:
        self.begun = 0
        self.open = asyncio.Event()

    async def __call__(self, job: Job) -> StepOutput:
        self.begun += 1
        await self.open.wait()
        return StepOutput(machine_type=job.name[1])


async def test_the_same_step_called_twice_runs_once_and_answers_both() -> None:
    table, gate = JobTable(), Gate()
    first, joined_first = table.start_or_join(key(), gate)
    second, joined_second = table.start_or_join(key(), gate)
    gate.open.set()
    assert (joined_first, joined_second) == (False, True)
    assert await first.result() == await second.result() == StepOutput(machine_type="made")
    assert gate.begun == 1


async def test_a_caller_that_goes_away_does_not_stop_the_job() -> None:
    table, gate = JobTable(), Gate()
    job, _ = table.start_or_join(key(), gate)
    caller = asyncio.create_task(job.result())
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    gate.open.set()
    assert (await job.result()).machine_type == "made"


async def test_steps_of_one_instance_run_one_after_the_other_and_others_do_not_wait() -> None:
    table, slow, other = JobTable(), Gate(), Gate()
    table.start_or_join(key("first"), slow)
    waiting, _ = table.start_or_join(key("second"), slow)
    free, _ = table.start_or_join(key("third", instance="j"), other)
    other.open.set()
    await free.result()
    assert slow.begun == 1
    slow.open.set()
    await waiting.result()
    assert slow.begun == 2


async def test_an_undo_asks_the_running_do_to_stop_and_comes_after_it() -> None:
    order: list[str] = []
    table = JobTable()

    async def do(job: Job) -> StepOutput:
        await job.stop.wait()
        order.append("do stopped")
        raise RemudaError(Reason.CANCELLED, "asked to stop")

    async def undo(_: Job) -> StepOutput:
        order.append("undone")
        return StepOutput()

    doing, _ = table.start_or_join(key(), do)
    undoing, _ = table.start_or_join(key(direction=UNDO), undo)
    await undoing.result()
    assert order == ["do stopped", "undone"]
    with pytest.raises(RemudaError):
        await doing.result()


async def test_a_do_is_refused_while_its_undo_runs() -> None:
    table, gate = JobTable(), Gate()
    undoing, _ = table.start_or_join(key(direction=UNDO), gate)
    with pytest.raises(RemudaError) as refused:
        table.start_or_join(key(), gate)
    assert refused.value.reason is Reason.STEP_FAILED
    gate.open.set()
    await undoing.result()


async def test_a_failed_step_can_be_started_again() -> None:
    table = JobTable()

    async def fail(_: Job) -> StepOutput:
        raise RemudaError(Reason.DISK_FULL, "no room")

    failed, _ = table.start_or_join(key(), fail)
    with pytest.raises(RemudaError):
        await failed.result()
    gate = Gate()
    gate.open.set()
    again, joined = table.start_or_join(key(), gate)
    assert not joined
    assert (await again.result()).machine_type == "made"


async def test_a_step_that_outlives_its_deadline_ends_with_a_typed_error() -> None:
    job, _ = JobTable().start_or_join(key(deadline=0.01), Gate())
    with pytest.raises(RemudaError) as late:
        await job.result()
    assert late.value.reason is Reason.DEADLINE_EXCEEDED


async def test_what_outlives_its_caller_has_no_deadline_and_is_told_apart() -> None:
    table, gate = JobTable(), Gate()
    job, _ = table.start_or_join(key(deadline=0.01), gate, outlives=True)
    table.start_or_join(key("queued"), gate)
    await asyncio.sleep(0.05)
    assert job.task is not None
    assert not job.task.done()
    assert [table.migrates(InstanceId(one)) for one in ("i", "j")] == [True, False]
    gate.open.set()
    await job.result()
    assert not table.migrates(InstanceId("i"))


async def test_who_follows_sees_the_newest_progress_and_the_end() -> None:
    table = JobTable()

    async def work(job: Job) -> StepOutput:
        for percent in range(1, 101):
            job.report(Progress(percent=percent))
            await asyncio.sleep(0)
        return StepOutput()

    job, _ = table.start_or_join(key(), work)
    seen = [progress.percent async for progress in job.follow()]
    assert seen == sorted(seen)
    assert seen
    # A follower that comes after the end ends too.
    assert len([progress async for progress in job.follow()]) <= 1
