"""The agent's end of `remuda_agent.snapshots.guard`: one child for the few seconds of one freeze."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import structlog
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import InstanceId

from remuda_agent.hypervisor.model import hypervisor_error

_log = structlog.get_logger(__name__)

START_SECONDS = 60.0
ANSWER_SECONDS = 60.0
"""More than the guard lets libvirt take, on a busy machine too."""
END_SECONDS = 10.0

Undo = Callable[[bool], Coroutine[Any, Any, None]]
"""With True the guest is resumed, too."""


class ChildGuard:
    """Implements `Guard`. Made by `guarded`."""

    def __init__(self, child: subprocess.Popen[bytes], answers: asyncio.StreamReader) -> None:
        self._child = child
        self._answers = answers
        self.acted = False
        self.settling = False
        """Whether the guest runs again was not said."""

    async def freeze(self) -> None:
        answer = await self._ask("freeze")
        if "error" in answer:
            raise RemudaError(Reason.QUIESCE_FAILED, f"the guest is not frozen: {answer['error']}")

    async def thaw(self) -> bool:
        answer = await self._ask("thaw")
        if "error" in answer:
            # It goes on trying; whether the freeze held until now nobody can say.
            _log.warning("the guest is not thawed yet", error=answer["error"])
        return int(answer.get("count", 0)) > 0

    async def settle(self) -> None:
        self.settling = True
        answer = await self._ask("settle")
        self.settling = False
        if "error" in answer:
            raise hypervisor_error(f"the guest was not stopped for an instant: {answer['error']}")

    async def hello(self) -> None:
        """Until it is connected to libvirt."""
        answer = await self._answer(START_SECONDS)
        if "error" in answer:
            raise hypervisor_error(f"the guard of a snapshot cannot work: {answer['error']}")

    async def _ask(self, word: str) -> dict[str, Any]:
        self.acted = True
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(f"{word}\n".encode())
            self._child.stdin.flush()
        except BrokenPipeError as error:
            raise hypervisor_error("the guard of a snapshot has ended") from error
        return await self._answer(ANSWER_SECONDS)

    async def _answer(self, seconds: float) -> dict[str, Any]:
        try:
            async with asyncio.timeout(seconds):
                line = await self._answers.readline()
        except TimeoutError as error:
            raise hypervisor_error(f"the guard of a snapshot did not answer within {seconds:g} s") from error
        if not line.endswith(b"\n"):
            raise hypervisor_error("the guard of a snapshot has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


@asynccontextmanager
async def guarded(
    uri: str, instance_id: InstanceId, *, limit: float, undo: Undo
) -> AsyncIterator[ChildGuard]:
    """`undo` thaws, and resumes, from here: for when the guard itself has died."""
    # Not asyncio's, which kills a child that its transport outlives: this one ends when it has thawed.
    child = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-m", "remuda_agent.snapshots.guard", uri, instance_id, str(limit)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # What ends the agent by a signal to its group or terminal must not end the guard.
        start_new_session=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    answers = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(answers), child.stdout
    )
    guard = ChildGuard(child, answers)
    try:
        await guard.hello()
        yield guard
    finally:
        with suppress(BrokenPipeError):
            child.stdin.close()
        transport.close()
        try:
            # One that still tries to thaw is left to it. One that was killed cannot.
            status = await asyncio.to_thread(child.wait, END_SECONDS)
        except subprocess.TimeoutExpired:
            _log.warning("a guest is still being thawed", instance=instance_id)
        else:
            if status and guard.acted:
                _log.warning("the guard of a snapshot has died", instance=instance_id, status=status)
                await undo(guard.settling)
