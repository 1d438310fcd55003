"""remuda migration set-bandwidth, set-max-downtime, switch-to-post-copy, pause-and-finish, cancel.

One command to a migration that runs, and what came of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from remuda_cli import completion
from remuda_cli.session import Session
from remuda_cli.verb import seconds, verb

if TYPE_CHECKING:
    from remuda.compute.v1 import migration_pb2

    from remuda_cli.moves import Move

_ANSWER_SECONDS = 30.0
"""The host answers within 5 s; the rest is for a change of the leader."""

MoveArg = Annotated[
    str,
    typer.Argument(
        metavar="INSTANCE",
        help="The instance that moves, or the migration; name, UUID or unique prefix.",
        autocompletion=completion.instances,
    ),
]
AnswerOption = Annotated[
    str, typer.Option("--timeout", metavar="TIME", help="Wait at most this long for the answer; else 30s.")
]


def register(app: typer.Typer) -> None:
    verb(app, "set-bandwidth")(set_bandwidth)
    verb(app, "set-max-downtime")(set_max_downtime)
    verb(app, "switch-to-post-copy")(switch_to_post_copy)
    verb(app, "pause-and-finish")(pause_and_finish)
    verb(app, "cancel")(cancel)


def set_bandwidth(
    session: Session,
    instance: MoveArg,
    mib_per_second: Annotated[
        int, typer.Argument(metavar="MIB/S", min=0, max=1_000_000, help="The cap; 0: none.")
    ],
    timeout: AnswerOption = "",
) -> None:
    """Change the cap of a migration's rate."""
    from remuda.compute.v1 import migration_pb2 as pb

    dial = pb.SetBandwidth(mib_per_second=mib_per_second)
    _command(session, instance, pb.ControlMigrationRequest(set_bandwidth=dial), timeout)


def set_max_downtime(
    session: Session,
    instance: MoveArg,
    longest: Annotated[str, typer.Argument(metavar="TIME", help="For example 500ms or 2s; at most 60s.")],
    timeout: AnswerOption = "",
) -> None:
    """Change the longest pause that QEMU may choose for the switch-over."""
    from remuda.compute.v1 import migration_pb2 as pb

    from remuda_cli.failure import usage

    milliseconds = round(seconds(longest) * 1000)
    if not 0 < milliseconds <= 60_000:
        raise usage(f"{longest} is not between 1ms and 60s")
    pause = pb.SetMaxDowntime(max_downtime_ms=milliseconds)
    _command(session, instance, pb.ControlMigrationRequest(set_max_downtime=pause), timeout)


def switch_to_post_copy(session: Session, instance: MoveArg, timeout: AnswerOption = "") -> None:
    """Let the guest go on at the target now; the rest of its memory follows.

    Only where live-migrate was told --allow-post-copy.
    """
    from remuda.compute.v1 import migration_pb2 as pb

    command = pb.ControlMigrationRequest(switch_to_post_copy=pb.SwitchToPostCopy())
    _command(session, instance, command, timeout)


def pause_and_finish(session: Session, instance: MoveArg, timeout: AnswerOption = "") -> None:
    """Pause the guest until the rest is copied; it goes on at the target."""
    from remuda.compute.v1 import migration_pb2 as pb

    _command(session, instance, pb.ControlMigrationRequest(pause_and_finish=pb.PauseAndFinish()), timeout)


def cancel(session: Session, instance: MoveArg, timeout: AnswerOption = "") -> None:
    """Give a migration up, also one that waits for its turn; the guest goes on at its source.

    Answered when everything is undone, or when it was too late. Without --timeout it waits for that.
    """
    from remuda.compute.v1 import migration_pb2 as pb

    from remuda_cli import moves
    from remuda_cli.commands import operation

    move = moves.find(session.gateway, instance)
    if move.migration:
        command = pb.ControlMigrationRequest(cancel=pb.GiveUp())
        _send(session, move, command, seconds(timeout) if timeout else None)
    else:
        operation.cancel(session, move.operation, wait=True, timeout=timeout)


def _command(
    session: Session, instance: str, command: migration_pb2.ControlMigrationRequest, timeout: str
) -> None:
    from remuda_cli import moves

    move = moves.find(session.gateway, instance)
    _send(session, move, command, seconds(timeout) if timeout else _ANSWER_SECONDS)


def _send(
    session: Session,
    move: Move,
    command: migration_pb2.ControlMigrationRequest,
    timeout: float | None,
) -> None:
    """Prints the answer. Raises Failure: FAILED when it was not effective, CONFLICT when it was refused."""
    from remuda.compute.v1 import migration_pb2 as pb

    from remuda_cli import moves
    from remuda_cli.exit_codes import ExitCode
    from remuda_cli.failure import Failure
    from remuda_cli.output.command_view import command_word, result_line, took_effect
    from remuda_cli.rpc_failure import from_status

    line = f"{command_word(command)} {move.subject}"
    result = _answer(session, moves.require_begun(move), command, line, timeout)
    if took_effect(result):
        if session.format.for_people:
            session.print_lines([result_line(line, result)])
        else:
            session.show(result)
        return
    if not session.format.for_people:
        session.show(result)
    if result.effect == pb.CommandResult.EFFECT_REFUSED:
        refusal = from_status(result.error)
        raise Failure(ExitCode.CONFLICT, result_line(line, result), reason=refusal.reason)
    raise Failure(ExitCode.FAILED, result_line(line, result))


def _answer(
    session: Session,
    migration: str,
    command: migration_pb2.ControlMigrationRequest,
    line: str,
    timeout: float | None,
) -> migration_pb2.CommandResult:
    from remuda_cli.exit_codes import ExitCode
    from remuda_cli.failure import Failure
    from remuda_cli.steering import Steering

    steering = Steering(session.gateway, migration, note=session.note)
    sent = steering.send(command)
    try:
        for event in steering.events(timeout=timeout):
            if event.HasField("result") and event.result.command_id == sent:
                return event.result
    except TimeoutError:
        raise Failure(
            ExitCode.TIMED_OUT,
            f"{line}: no answer within {timeout:g} s; it may still be carried out",
            hints=(f"remuda migration show {migration.rpartition('/')[2]}",),
        ) from None
    except KeyboardInterrupt:
        raise Failure(ExitCode.INTERRUPTED, f"{line}: interrupted; it may still be carried out") from None
    finally:
        steering.close()
    raise Failure(ExitCode.CONFLICT, f"{line}: the migration ended without an answer")
