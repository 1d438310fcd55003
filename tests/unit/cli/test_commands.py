"""The command line itself: help, usage, exit codes. No gateway is called."""

from pathlib import Path

import grpc
import pytest
import typer
from google.rpc import error_details_pb2, status_pb2
from remuda_cli.exit_codes import ExitCode
from remuda_cli.main import build, run
from remuda_cli.rpc_failure import from_status
from remuda_core.errors import REASONS, Reason, RemudaError
from remuda_core.rpc.status import to_status

NOUNS = {
    "instance": "create launch list show update delete start stop live-migrate check-migration"
    " actions events console-log watch reconcile snapshot",
    "host": "create list show delete cordon uncordon explain-placement sweep",
    "image": "create upload list show update share unshare delete download",
    "quota": "show set",
    "flavor": "create list show delete",
    "network": "create list show delete",
    "migration": "list show control set-bandwidth set-max-downtime switch-to-post-copy"
    " pause-and-finish cancel",
    "operation": "list show watch wait cancel",
}


@pytest.mark.parametrize("noun", NOUNS)
def test_every_verb_exists_and_explains_itself_and_its_options(noun: str) -> None:
    root = typer.main.get_command(build())
    commands = root.commands[noun].commands  # type: ignore[attr-defined]
    assert set(commands) == set(NOUNS[noun].split())
    for verb, command in commands.items():
        assert command.help, verb
        unexplained = [p.name for p in command.params if not getattr(p, "help", "") and p.name != "help"]
        assert not unexplained, f"{noun} {verb}"
        assert "output" in {p.name for p in command.params}


@pytest.mark.parametrize(
    "arguments",
    [
        ["instance", "shwo"],
        ["instance", "show"],
        ["instance", "list", "-o", "xml"],
        ["instance", "start", "web", "--timeout", "soon"],
        ["host", "create", "a", "--uuid", "no-uuid"],
        ["image", "upload", "/nowhere/disk.img"],
        ["instance", "list", "--watch", "--state", "running"],
        ["migration", "list", "web", "--all"],
    ],
)
def test_wrong_usage_is_exit_code_2_before_anything_is_asked(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMUDA_ENDPOINT", "http://127.0.0.1:1")
    assert run(arguments) == ExitCode.USAGE
    captured = capsys.readouterr()
    assert captured.err
    assert captured.out == ""


def test_the_help_of_the_whole_command_lists_the_global_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == ExitCode.DONE
    text = capsys.readouterr().out
    missing = [
        option
        for option in ("--output", "--config", "--context", "--project", "--endpoint", "--debug")
        if option not in text
    ]
    assert not missing


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["--context", "red", "flavor", "list"], "red"),
        (["flavor", "list", "--context", "blue"], "blue"),
        (["--context", "red", "flavor", "list", "--context", "blue"], "blue"),
        (["--context", "red", "flavor", "--context", "blue", "list"], None),
    ],
)
def test_a_global_option_stands_before_the_noun_or_after_the_verb_which_wins(
    arguments: list[str], asked: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "contexts.toml"
    file.write_text('[contexts.red]\ncacert = "/red"\n[contexts.blue]\ncacert = "/blue"\n')
    assert run(["--config", str(file), *arguments]) == ExitCode.USAGE
    words = capsys.readouterr().err
    assert f"cannot read /{asked}" in words if asked else "No such option" in words


def test_a_certificate_that_cannot_be_read_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMUDA_CACERT", "/nowhere/ca.pem")
    assert run(["flavor", "list"]) == ExitCode.USAGE
    assert "cannot read /nowhere/ca.pem" in capsys.readouterr().err


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_an_exit_code_that_its_status_code_says(reason: Reason) -> None:
    failure = from_status(to_status(RemudaError(reason, "because")))
    expected = {
        grpc.StatusCode.NOT_FOUND: ExitCode.NOT_FOUND,
        grpc.StatusCode.ABORTED: ExitCode.CONFLICT,
        grpc.StatusCode.ALREADY_EXISTS: ExitCode.CONFLICT,
        grpc.StatusCode.FAILED_PRECONDITION: ExitCode.CONFLICT,
        grpc.StatusCode.RESOURCE_EXHAUSTED: ExitCode.CONFLICT,
        grpc.StatusCode.UNAVAILABLE: ExitCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED: ExitCode.UNAVAILABLE,
        grpc.StatusCode.UNAUTHENTICATED: ExitCode.AUTHENTICATION,
        grpc.StatusCode.PERMISSION_DENIED: ExitCode.AUTHENTICATION,
        grpc.StatusCode.INVALID_ARGUMENT: ExitCode.USAGE,
        grpc.StatusCode.OUT_OF_RANGE: ExitCode.USAGE,
    }
    assert failure.exit_code is expected.get(REASONS[reason].code, ExitCode.FAILED)
    assert failure.reason == reason.value
    if failure.exit_code in (ExitCode.NOT_FOUND, ExitCode.UNAVAILABLE, ExitCode.AUTHENTICATION):
        assert failure.hints, "somebody has to know what to try next"


def test_a_reason_of_a_newer_server_keeps_its_name_and_code() -> None:
    status = status_pb2.Status(code=grpc.StatusCode.ABORTED.value[0], message="not now")
    status.details.add().Pack(error_details_pb2.ErrorInfo(domain="remuda", reason="FROM_THE_FUTURE"))
    failure = from_status(status)
    assert (failure.exit_code, failure.reason) == (ExitCode.CONFLICT, "FROM_THE_FUTURE")


def test_an_error_that_is_not_ours_shows_its_code() -> None:
    failure = from_status(
        status_pb2.Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="connection refused")
    )
    assert failure.lines()[0] == "error: connection refused (UNAVAILABLE)"
