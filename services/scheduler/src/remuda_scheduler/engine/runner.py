"""Executes one operation: forward through its steps, or back.

         begin --> step 1 --> ... --> point of no return --> ... --> step n --> finish (DONE)
                     |  failed, or cancelled                |  failed
                     v                                      v
                   undo, newest first                     finish (FAILED, nothing is undone)
                     |            |
                     |            +--> retry_from: forward again, e.g. to another host
                     v            +--> AlreadyDone: it cannot be undone, forward again
                   finish (FAILED or CANCELLED)

One txn closes a step and opens the next, fenced by the leader's epoch. Whoever comes after a crash loads the
journal and repeats the step that is open. Anything unclear about etcd ends in `Interrupted`: load again.
"""

import asyncio
import time
from enum import Enum, auto
from typing import Any

from remuda.compute.v1.operation_pb2 import OperationMetadata, OperationStep
from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd import ops
from remuda_core.etcd.errors import EtcdError, InvalidRequest, TooLarge
from remuda_core.ids import HostId
from remuda_core.rpc.status import from_status, to_status

from remuda_scheduler.engine import position
from remuda_scheduler.engine.attempts import Attempts
from remuda_scheduler.engine.clock import now
from remuda_scheduler.engine.debts import debt_of, settle
from remuda_scheduler.engine.finishing import finish
from remuda_scheduler.engine.run import Interrupted, Run, cancelled
from remuda_scheduler.engine.saga import AlreadyDone, Commit, Ending, Step, Unreachable


async def execute(run: Run[Any], fault: RemudaError | None = None) -> None:
    """Until the operation is done. Raises Interrupted, NotLeader and other EtcdErrors.

    `fault`: etcd refused what an execution before this one wanted to write, and always will.
    """
    if run.resumed:
        await _shake_hands(run)
    else:
        refusal = fault or await _begin(run)
        if refusal is not None:
            await _finish_failed(run, refusal)
            return
    if fault is not None:
        # By far the largest things in the record, and nothing depends on them.
        run.metadata.ClearField("placement")
        run.metadata.ClearField("preflight")
        if run.journal.committed:
            await _finish_failed(run, fault)
            return
        if not run.journal.undoing:
            _turn_back(run, fault)
            # Another host would not make it any smaller.
            run.journal.retry_from = ""
    while True:
        if run.journal.undoing:
            way = await _backward(run)
            if way is _Way.FORWARD or run.journal.retry_from:
                _turn_forward(run)
                continue
            await _finish_failed(run, from_status(run.journal.failure))
            return
        error = await _forward(run)
        if error is None:
            ending = await run.saga.succeed(run)
            if await finish(run, ending, None):
                return
            error = cancelled()
        if run.journal.committed:
            await _finish_failed(run, error)
            return
        _turn_back(run, error)


class _Way(Enum):
    BACK = auto()
    FORWARD = auto()


async def _begin(run: Run[Any]) -> RemudaError | None:
    """Why the operation cannot begin. Nothing has been done yet, so it may end for any reason."""
    try:
        await run.saga.begin(run)
    except RemudaError as refusal:
        return refusal
    except (EtcdError, Interrupted):
        raise
    except Exception:
        run.log.exception("operation cannot begin")
        return RemudaError(Reason.INTERNAL, f"{run.record.action} could not begin; the logs have it")
    return None


async def _shake_hands(run: Run[Any]) -> None:
    """Every host that the operation names must know this leader before the operation moves.

    A host that stays silent is left out after the engine's patience: no order reaches it before it has
    acknowledged (FencedAgents), so that all that is left for it is a debt, or waiting.
    """

    async def fence(host: HostId) -> None:
        attempts = Attempts(run.services.timing, run.silent)
        while True:
            try:
                return await run.services.agents.fence(host)
            except RemudaError as error:
                if run.services.store.fenced(host) or not await attempts.again(error, host):
                    run.log.warning("no handshake with a host", host=host, error=str(error))
                    return None

    await asyncio.gather(*(fence(host) for host in position.hosts_named(run.journal)))


# --- forward ---


async def _forward(run: Run[Any]) -> RemudaError | None:
    """None: all steps are complete. Else why not."""
    while (step := position.next_step(run.saga, run.journal)) is not None:
        index = position.last_entry(run.journal, step.name)
        begun = index >= 0 and run.journal.entries[index].state == OperationStep.STATE_RUNNING
        if run.cancelled.is_set() and _may_be_cancelled(run, step, begun=begun):
            return cancelled()
        if begun:
            run.journal.entries[index].attempts += 1
            run.metadata.state = OperationMetadata.STATE_RUNNING
            await run.commit()
        elif not await _open(run, step):
            return cancelled()
        error = await _attempt(run, step)
        if error is not None:
            return error
    return None


def _may_be_cancelled(run: Run[Any], step: Step[Any], *, begun: bool) -> bool:
    """Not past the point of no return, and not inside a step that knows better how to stop."""
    decided = run.journal.committed or step.commits is Commit.BY_EVIDENCE
    return not decided and not (begun and step.handles_cancel)


async def _open(run: Run[Any], step: Step[Any]) -> bool:
    """False: the step would have passed the point of no return, and a cancel was there first."""
    position.open_step(run.journal, run.metadata, step.name, step.host_id(run), now())
    before = run.journal.committed
    run.journal.committed = before or step.commits is not Commit.NO
    asked = step.commits is Commit.IF_NOT_CANCELLED and not before
    compare = [ops.absent(run.services.keys.cancel(run.operation_id))] if asked else []
    if await run.commit(compare=compare):
        return True
    run.journal.committed = before
    position.take_back_open(run.journal, run.metadata)
    return False


async def _attempt(run: Run[Any], step: Step[Any]) -> RemudaError | None:
    """Does one step, repeatedly where that may help, and notes in memory what came of it."""
    index = position.last_entry(run.journal, step.name)
    run.begin_step(step)
    attempts = Attempts(run.services.timing, run.silent, tries=step.attempts, stubborn=run.journal.committed)
    started = time.monotonic()
    while True:
        error = await _once(run, step)
        if error is None:
            position.mark(run.journal, run.metadata, index, OperationStep.STATE_DONE, now())
            _measure(run, step, "done", started)
            return None
        run.log.warning("step did not succeed", step=step.name, error=str(error))
        host = step.host_id(run)
        if not run.services.store.fenced(host) and await attempts.again(error, host):
            continue
        if step.unreachable is Unreachable.OWE and _owe(run, index, error):
            _measure(run, step, "owed", started)
            return None
        position.mark(run.journal, run.metadata, index, OperationStep.STATE_FAILED, now(), to_status(error))
        _measure(run, step, "failed", started)
        return error


async def _once(run: Run[Any], step: Step[Any]) -> RemudaError | None:
    leave_on_cancel = step.host is not None and not step.handles_cancel and not run.journal.committed
    try:
        async with asyncio.timeout(step.deadline_seconds):
            if not leave_on_cancel:
                await _do(run, step)
            elif not await _unless_cancelled(run, step):
                return cancelled()
    except RemudaError as error:
        return error
    except TimeoutError:
        seconds = f"{step.deadline_seconds:.0f} s"
        return RemudaError(Reason.DEADLINE_EXCEEDED, f"step {step.name} took longer than {seconds}")
    except (EtcdError, Interrupted):
        raise
    except Exception:
        run.log.exception("step broke", step=step.name)
        return RemudaError(Reason.INTERNAL, f"step {step.name} broke; the logs have it")
    return None


async def _do(run: Run[Any], step: Step[Any]) -> None:
    host = step.host_id(run)
    if host and host not in run.settled and not run.saga.takes_over_debts:
        # What is still owed there would be done after our orders, and might contradict them.
        await settle(run.services, host, run.instance_id, mine=run.operation_id)
        run.settled.add(host)
    await step.do(run)


async def _unless_cancelled(run: Run[Any], step: Step[Any]) -> bool:
    """False: a cancel came first. The agent's job is stopped by the undo, not by our leaving."""
    doing = asyncio.ensure_future(_do(run, step))
    asked = asyncio.ensure_future(run.cancelled.wait())
    try:
        await asyncio.wait({doing, asked}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            await doing
            return True
        return False
    finally:
        doing.cancel()
        asked.cancel()
        await asyncio.gather(doing, asked, return_exceptions=True)


# --- back ---


def _turn_back(run: Run[Any], error: RemudaError) -> None:
    run.journal.undoing = True
    run.journal.failure.CopyFrom(to_status(error, request_id=run.metadata.request_id))
    stopped = error.reason is Reason.CANCELLED or run.cancelled.is_set()
    run.journal.retry_from = "" if stopped else run.saga.retry_from(run, error)
    run.metadata.state = OperationMetadata.STATE_UNDOING


def _turn_forward(run: Run[Any]) -> None:
    run.journal.undoing = False
    run.journal.retry_from = ""
    run.journal.ClearField("failure")


async def _backward(run: Run[Any]) -> _Way:
    while (index := position.next_undo(run.journal)) >= 0:
        step = run.saga.step(run.journal.entries[index].step)
        if step.undo is None:
            position.mark(run.journal, run.metadata, index, OperationStep.STATE_UNDONE, now())
            continue
        position.mark(run.journal, run.metadata, index, OperationStep.STATE_UNDOING, now())
        await run.commit()
        try:
            await _undo(run, step, index)
        except AlreadyDone as evidence:
            run.log.warning("it cannot be undone", step=step.name, evidence=str(evidence))
            position.mark(run.journal, run.metadata, index, OperationStep.STATE_DONE, now())
            return _Way.FORWARD
    return _Way.BACK


async def _undo(run: Run[Any], step: Step[Any], index: int) -> None:
    run.begin_step(step)
    attempts = Attempts(run.services.timing, run.silent, tries=step.attempts, stubborn=True)
    started = time.monotonic()
    while (error := await _once_back(run, step)) is not None:
        run.log.warning("undo did not succeed", step=step.name, error=str(error))
        host = run.asked or HostId("")
        if not (host and run.services.store.fenced(host)) and await attempts.again(error, host):
            continue
        if _owe(run, index, error):
            _measure(run, step, "owed", started)
            return
        if run.asked is not None:
            # Only about the run state. What the guest does now is for observation to tell, and for its owner
            # to change: see debts.py.
            _give_up(run, index, error)
            _measure(run, step, "failed", started)
            return
        # Nothing was asked of a host: what failed is the control plane's own, and that comes back.
        raise Interrupted(f"undo of {step.name}: {error}")
    position.mark(run.journal, run.metadata, index, OperationStep.STATE_UNDONE, now())
    _measure(run, step, "undone", started)


async def _once_back(run: Run[Any], step: Step[Any]) -> RemudaError | None:
    assert step.undo is not None
    try:
        async with asyncio.timeout(step.deadline_seconds):
            await step.undo(run)
    except RemudaError as error:
        return error
    except TimeoutError:
        return RemudaError(Reason.DEADLINE_EXCEEDED, f"the undo of {step.name} took too long")
    return None


def _give_up(run: Run[Any], index: int, error: RemudaError) -> None:
    error = RemudaError(error.reason, f"not undone: {error.message}", metadata=error.metadata)
    position.mark(run.journal, run.metadata, index, OperationStep.STATE_UNDONE, now(), to_status(error))


def _owe(run: Run[Any], index: int, error: RemudaError) -> bool:
    """Makes the last order a debt, written together with the journal. False: there was none to be owed."""
    if run.last_order is None:
        return False
    host, request = run.last_order
    debt = debt_of(host, request)
    key = run.services.keys.debt(host, run.operation_id, request.key.step)
    run.with_next_write(ops.put(key, debt.SerializeToString(deterministic=True)))
    position.mark(run.journal, run.metadata, index, OperationStep.STATE_OWED, now(), to_status(error))
    run.log.warning("left as a debt", host=host, step=request.key.step, error=str(error))
    return True


# --- the end ---


async def _finish_failed(run: Run[Any], error: RemudaError) -> None:
    try:
        ending = await run.saga.fail(run, error)
    except RemudaError as nothing_left:
        # The record is gone: the operation still has to end, and to release its claim.
        run.log.warning("nothing to say about the instance", error=str(nothing_left))
        ending = Ending()
    try:
        await finish(run, ending, error)
    except (TooLarge, InvalidRequest) as refusal:
        run.log.error("etcd refuses what would be said about the instance", error=str(refusal))
        await finish(run, Ending(), error)


def _measure(run: Run[Any], step: Step[Any], outcome: str, started: float) -> None:
    run.services.metrics.step_ended(run.record.action, step.name, outcome, time.monotonic() - started)
