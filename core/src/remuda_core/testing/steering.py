"""What a host in memory does with commands to the migration that it holds."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from google.protobuf.timestamp_pb2 import Timestamp
from remuda.agent.v1.migration_pb2 import StartMigration
from remuda.compute.v1.migration_pb2 import (
    CommandResult,
    ControlMigrationRequest,
    MigrationMilestone,
    MigrationProgress,
)

from remuda_core.errors import Reason, RemudaError
from remuda_core.rpc.status import to_status


class Steering(Protocol):
    """As the scheduler's port of the same name."""

    def commands(self) -> AsyncGenerator[ControlMigrationRequest, None]: ...

    def answer(self, result: CommandResult) -> None: ...


@dataclass(slots=True, kw_only=True, eq=False)
class Obedience:
    """Commands are carried out at once, each id once; a repeated id gets the same answer."""

    host: str = ""
    """hosts/{uuid}"""
    log: list[ControlMigrationRequest] = field(default_factory=list)
    """Every command that arrived, repeated ones too."""
    deaf_for: int = 0
    """So many commands arrive and are neither carried out nor answered."""
    may_finish: asyncio.Event = field(default_factory=asyncio.Event)
    """`pause_and_finish`, or the end of post-copy: a copy without an end may end well."""
    _answers: dict[str, CommandResult] = field(default_factory=dict)
    _applied: list[MigrationMilestone] = field(default_factory=list)

    @asynccontextmanager
    async def steered(
        self, start: StartMigration, steering: Steering, on_milestone: Callable[[MigrationMilestone], None]
    ) -> AsyncIterator[None]:
        for told in self._applied:
            on_milestone(told)
        obeying = asyncio.create_task(self._obey(start, steering, on_milestone))
        try:
            yield
        finally:
            obeying.cancel()
            await asyncio.gather(obeying, return_exceptions=True)

    async def _obey(
        self, start: StartMigration, steering: Steering, on_milestone: Callable[[MigrationMilestone], None]
    ) -> None:
        async for command in steering.commands():
            self.log.append(command)
            if self.deaf_for > 0:
                self.deaf_for -= 1
                continue
            if command.command_id not in self._answers:
                self._answers[command.command_id] = self._carry_out(start, command)
            for told in self._applied:
                on_milestone(told)
            steering.answer(self._answers[command.command_id])

    def _carry_out(self, start: StartMigration, command: ControlMigrationRequest) -> CommandResult:
        kind = command.WhichOneof("command") or ""
        result = CommandResult(
            command_id=command.command_id,
            effect=CommandResult.EFFECT_APPLIED,
            phase=MigrationProgress.PHASE_MEMORY,
            observed=f"{kind} is in force",
        )
        if kind == "switch_to_post_copy" and not start.policy.allow_post_copy:
            error = RemudaError(Reason.COMMAND_REFUSED, "the migration was begun without post-copy")
            result.effect, result.observed = CommandResult.EFFECT_REFUSED, error.message
            result.error.CopyFrom(to_status(error))
            return result
        if kind in ("pause_and_finish", "switch_to_post_copy"):
            self.may_finish.set()
        now = Timestamp()
        now.GetCurrentTime()
        self._applied.append(
            MigrationMilestone(type="COMMAND_APPLIED", host=self.host, time=now, detail=result.observed)
        )
        return result
