"""Which endpoint, and as whom."""

from pathlib import Path
from typing import Any

import pytest
from remuda_cli.exit_codes import ExitCode
from remuda_cli.failure import Failure
from remuda_cli.settings import DEFAULT_ENDPOINT, load_contexts, resolve

CONTEXTS: dict[str, Any] = {
    "current": "lab",
    "contexts": {"lab": {"endpoint": "lab:1", "project": "demo"}, "prod": {"endpoint": "prod:1"}},
}


def test_without_anything_said_it_is_tls_to_the_local_gateway() -> None:
    connection = resolve(environ={}, contexts={})
    assert connection.endpoint == DEFAULT_ENDPOINT
    assert not connection.plaintext


def test_the_environment_wins_over_the_files_current_context() -> None:
    connection = resolve(environ={"REMUDA_ENDPOINT": "env:1"}, contexts=CONTEXTS)
    assert (connection.endpoint, connection.project) == ("env:1", "demo")


def test_a_context_named_by_flag_wins_over_the_environment() -> None:
    connection = resolve(environ={"REMUDA_ENDPOINT": "env:1"}, contexts=CONTEXTS, context="prod")
    assert connection.endpoint == "prod:1"


def test_a_context_can_be_named_by_the_environment() -> None:
    assert resolve(environ={"REMUDA_CONTEXT": "prod"}, contexts=CONTEXTS).endpoint == "prod:1"


def test_flags_win_over_everything() -> None:
    environ = {"REMUDA_ENDPOINT": "env:1", "REMUDA_PROJECT": "a"}
    connection = resolve(environ=environ, contexts=CONTEXTS, context="lab", endpoint="flag:1", project="b")
    assert (connection.endpoint, connection.project) == ("flag:1", "b")


def test_only_an_http_endpoint_is_plaintext() -> None:
    connection = resolve(environ={"REMUDA_ENDPOINT": "http://127.0.0.1:5/"}, contexts={})
    assert connection.plaintext
    assert connection.target == "127.0.0.1:5"
    assert not resolve(environ={"REMUDA_ENDPOINT": "https://a:5"}, contexts={}).plaintext


@pytest.mark.parametrize(
    ("environ", "contexts", "words"),
    [
        ({"REMUDA_CONTEXT": "attic"}, CONTEXTS, "it has: lab, prod"),
        ({"REMUDA_CERT": "a.pem"}, {}, "both REMUDA_CERT and REMUDA_KEY"),
        ({"REMUDA_TOKEN": "t", "REMUDA_ENDPOINT": "http://example.org:1"}, {}, "in plaintext"),
        ({}, {"current": "a", "contexts": {"a": {"endpoit": "x"}}}, "unknown key 'endpoit'"),
        ({}, {"current": "a", "contexts": {"a": {"endpoint": 5}}}, "endpoint must be a string"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(environ: dict[str, str], contexts: Any, words: str) -> None:
    with pytest.raises(Failure, match=words) as caught:
        resolve(environ=environ, contexts=contexts)
    assert caught.value.exit_code is ExitCode.USAGE


def test_a_missing_context_file_is_empty_unless_it_was_named(tmp_path: Path) -> None:
    assert load_contexts({"XDG_CONFIG_HOME": str(tmp_path)}) == {}
    with pytest.raises(Failure, match=r"REMUDA_CONFIG names .* does not exist"):
        load_contexts({"REMUDA_CONFIG": str(tmp_path / "none.toml")})


def test_a_context_file_named_by_flag_wins_over_the_environments(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('current = "lab"\n')
    environ = {"REMUDA_CONFIG": str(tmp_path / "none.toml")}
    assert load_contexts(environ, named=str(file)) == {"current": "lab"}
    with pytest.raises(Failure, match=r"--config names .* does not exist"):
        load_contexts(environ, named=str(tmp_path / "gone.toml"))


def test_a_broken_context_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "contexts.toml"
    file.write_text("not toml")
    with pytest.raises(Failure, match=r"contexts\.toml"):
        load_contexts({"REMUDA_CONFIG": str(file)})
