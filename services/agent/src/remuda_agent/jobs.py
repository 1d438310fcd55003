"""Steps as detached jobs: a call starts or joins one, losing the call never stops it.

Steps of one instance run one after the other. A job that has ended is not remembered: every step looks at
what is there before it acts, so running it again is harmless and tells the truth, where a remembered answer
could be older than what was done since.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import structlog
from remuda.agent.v1.agent_pb2 import StepOutput
from remuda.agent.v1.common_pb2 import StepKey
from remuda.compute.v1.operation_pb2 import Progress
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import InstanceId
from remuda_core.rpc.context import detached

_log = structlog.get_logger(__name__)

DEFAULT_DEADLINE_SECONDS = 600.0

JobName = tuple[str, str, int]
"""(operation, step, direction)"""


@dataclass(slots=True, eq=False)
class Job:
    """One running step. `stop` asks it to end early; it decides when it safely can."""

    name: JobName
    instance_id: InstanceId
    outlives: bool = False
    """A migration: what it does goes on without this process, and is adopted by the next one."""
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[StepOutput] | None = None
    _followers: set[asyncio.Queue[Progress | None]] = field(default_factory=set)
    _latest: Progress | None = None

    def report(self, progress: Progress) -> None:
        """Tells every follower; a slow one only gets the newest."""
        self._latest = progress
        for queue in self._followers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(progress)

    async def follow(self) -> AsyncIterator[Progress]:
        """Progress until the job has ended."""
        if self.task is None:
            raise RuntimeError("the job was not started")
        queue: asyncio.Queue[Progress | None] = asyncio.Queue(maxsize=1)
        if self._latest is not None:
            queue.put_nowait(self._latest)

        def ended(_: object) -> None:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(None)

        self._followers.add(queue)
        self.task.add_done_callback(ended)
        try:
            while (progress := await queue.get()) is not None:
                yield progress
        finally:
            self._followers.discard(queue)
            self.task.remove_done_callback(ended)

    async def result(self) -> StepOutput:
        """Waits without owning: cancelling the wait leaves the job alone. Raises what the job raised."""
        if self.task is None:
            raise RuntimeError("the job was not started")
        return await asyncio.shield(self.task)


Work = Callable[[Job], Awaitable[StepOutput]]


class JobTable:
    """The running jobs of this host."""

    def __init__(self) -> None:
        self._jobs: dict[JobName, Job] = {}
        self._turns: dict[InstanceId, asyncio.Lock] = {}

    def steps(self) -> Counter[str]:
        """How many jobs run, by step."""
        return Counter(step for _, step, _ in self._jobs)

    def migrates(self, instance: InstanceId) -> bool:
        """A migration of that instance was accepted and has not ended, whatever the hypervisor shows yet."""
        return any(job.outlives and job.instance_id == instance for job in self._jobs.values())

    def start_or_join(self, key: StepKey, work: Work, *, outlives: bool = False) -> tuple[Job, bool]:
        """The job of this key, and whether it ran already. `outlives`: see Job.

        One that outlives its caller has no deadline: giving it up would leave behind what goes on without it,
        steered by nobody. It has to end by itself.

        An UNDO asks a running DO of the same step to stop, and runs after it has.
        """
        name: JobName = (key.operation_id, key.step, key.direction)
        if (running := self._jobs.get(name)) is not None:
            return running, True
        opposite = self._jobs.get((key.operation_id, key.step, _opposite(key.direction)))
        if opposite is not None:
            if key.direction == StepKey.DIRECTION_DO:
                raise RemudaError(Reason.STEP_FAILED, f"step {key.step} is being undone")
            opposite.stop.set()
        job = Job(name=name, instance_id=InstanceId(key.instance_id), outlives=outlives)
        asked = key.deadline.ToTimedelta().total_seconds() if key.HasField("deadline") else 0.0
        deadline = None if outlives else asked or DEFAULT_DEADLINE_SECONDS
        self._jobs[name] = job
        with detached():  # the deadline of the call that happens to start it is not the job's
            job.task = asyncio.create_task(
                self._run(job, work, deadline),
                name=f"{key.step} {key.instance_id}",
            )
        # Whoever started it may be gone when it fails; the log has it, asyncio need not complain.
        job.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return job, False

    async def _run(self, job: Job, work: Work, deadline: float | None) -> StepOutput:
        try:
            async with self._turns.setdefault(job.instance_id, asyncio.Lock()):
                try:
                    async with asyncio.timeout(deadline):
                        return await work(job)
                except TimeoutError as late:
                    raise RemudaError(
                        Reason.DEADLINE_EXCEEDED, f"step {job.name[1]} took longer than {deadline or 0:.0f} s"
                    ) from late
        except RemudaError as error:
            _log.warning("step failed", step=job.name[1], operation=job.name[0], error=str(error))
            raise
        except Exception:
            _log.exception("step broke", step=job.name[1], operation=job.name[0])
            raise
        finally:
            del self._jobs[job.name]
            if not any(other.instance_id == job.instance_id for other in self._jobs.values()):
                self._turns.pop(job.instance_id, None)

    async def close(self, seconds: float) -> None:
        """Waits for running jobs, then ends the rest: the leader's next call, or `adopt`, goes on with them.

        Before the hypervisor is closed: a job must never take that for its own end.
        """
        running = {job.task: job for job in self._jobs.values() if job.task}
        finite = [task for task, job in running.items() if not job.outlives]
        if finite:
            await asyncio.wait(finite, timeout=seconds)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _opposite(direction: "StepKey.Direction.ValueType") -> "StepKey.Direction.ValueType":
    return StepKey.DIRECTION_UNDO if direction == StepKey.DIRECTION_DO else StepKey.DIRECTION_DO
