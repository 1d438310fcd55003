"""What a person is given to talk to a lab."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import replace
from pathlib import Path

from remuda_cli.settings import resolve
from remuda_core.auth.caller import Kind
from remuda_core.auth.identity import TokensFile, by_certificate
from remuda_lab.cluster.client import LabClient, make_client, tokens_file
from remuda_lab.layout import LabPaths
from remuda_lab.pki import Authority


def client(place: Path) -> LabClient:
    paths = LabPaths(root=place)
    return replace(make_client(paths, Authority.create(paths.pki)), port=7001, token_port=7002)


def test_the_context_file_is_one_that_the_command_line_takes(tmp_path: Path) -> None:
    made = client(tmp_path)
    made.write()
    contexts = tomllib.loads(made.contexts.read_text())
    admin = resolve(environ={}, contexts=contexts)
    assert (admin.endpoint, admin.project) == ("127.0.0.1:7001", "demo")
    assert Path(admin.cert).is_file()
    token = resolve(environ={}, contexts=contexts, context="token")
    assert (token.endpoint, token.token, token.cert) == ("127.0.0.1:7002", made.token, "")


def test_certificates_and_the_token_stand_for_the_users_that_they_are_named_after(tmp_path: Path) -> None:
    made = client(tmp_path)
    admin = by_certificate(made.pair("admin").certificate.read_bytes())
    alice = by_certificate(made.pair("alice").certificate.read_bytes())
    assert (admin.kind, admin.is_admin) == (Kind.USER, True)
    assert (alice.name, alice.is_admin, set(alice.projects)) == ("alice", False, {"demo"})
    file = tmp_path / "tokens.toml"
    file.write_text(tokens_file(made))
    by_token = TokensFile(file).caller(made.token)
    assert by_token is not None
    assert (by_token.name, set(by_token.projects)) == ("alice", {"demo"})
    assert made.token not in file.read_text()
    assert hashlib.sha256(made.token.encode()).hexdigest() in file.read_text()


def test_nobody_else_can_read_the_token(tmp_path: Path) -> None:
    made = client(tmp_path)
    assert (made.directory / "token").stat().st_mode & 0o077 == 0
