"""Identities from certificates, tokens and the insecure user agent."""

import hashlib
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from remuda_core.auth.caller import ANONYMOUS, Caller, Kind
from remuda_core.auth.identity import Tokens, TokensFile, identify
from remuda_core.errors import Reason, RemudaError
from remuda_lab.pki import Authority, Identity, host_identity, service_identity, user_identity

HOST = "6f2a1c5e-6e0e-4a51-9d0e-0d6f6b1c1a01"
ADDRESS = IPv4Address("10.77.0.1")
FILE = f"""
[[tokens]]
sha256 = "{hashlib.sha256(b"s3cret").hexdigest()}"
principal = "bob"
roles = ["admin"]
projects = ["demo"]
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("ca"))


def by_certificate(authority: Authority, identity: Identity, tmp_path: Path) -> Caller:
    pem = authority.issue(identity, tmp_path).certificate.read_bytes()
    return identify(auth_context={"x509_pem_cert": [pem]}, metadata={}, tokens=None, insecure=False)


def test_a_service_is_its_role_whatever_its_instance_is_called(authority: Authority, tmp_path: Path) -> None:
    identity = service_identity("scheduler", instance="scheduler-1", addresses=[ADDRESS])
    caller = by_certificate(authority, identity, tmp_path)
    assert (caller.principal, caller.host_id, caller.is_admin) == ("service/scheduler", None, False)


def test_a_host_is_its_uuid(authority: Authority, tmp_path: Path) -> None:
    caller = by_certificate(authority, host_identity("h1", HOST, ADDRESS), tmp_path)
    assert (caller.kind, caller.host_id) == (Kind.HOST, HOST)


def test_a_user_has_the_roles_and_projects_of_its_subject(authority: Authority, tmp_path: Path) -> None:
    identity = user_identity("alice", ["admin", "project:demo", "project:web"])
    caller = by_certificate(authority, identity, tmp_path)
    assert caller.principal == "user/alice"
    assert (caller.is_admin, caller.projects) == (True, frozenset({"demo", "web"}))


def test_a_host_cannot_be_made_an_admin_by_its_subject(authority: Authority, tmp_path: Path) -> None:
    identity = Identity(common_name="h1", path=f"host/{HOST}", roles=("admin",))
    assert not by_certificate(authority, identity, tmp_path).is_admin


def test_a_hypervisors_certificate_is_nobody(authority: Authority, tmp_path: Path) -> None:
    assert by_certificate(authority, Identity(common_name="q", path=None, dns=("h1",)), tmp_path) is ANONYMOUS


@pytest.mark.parametrize("path", ["robot/r2d2", "service/", "user/a/b", "admin"])
def test_an_identity_of_an_unknown_kind_is_refused(authority: Authority, tmp_path: Path, path: str) -> None:
    with pytest.raises(RemudaError) as caught:
        by_certificate(authority, Identity(common_name="x", path=path), tmp_path)
    assert caught.value.reason is Reason.UNAUTHENTICATED


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    path = tmp_path / "tokens.toml"
    path.write_text(FILE)
    return TokensFile(path)


def by_header(header: str, tokens: Tokens | None) -> Caller:
    return identify(auth_context={}, metadata={"authorization": header}, tokens=tokens, insecure=False)


def test_a_known_token_is_a_user(tokens: Tokens) -> None:
    caller = by_header("Bearer s3cret", tokens)
    assert (caller.principal, caller.is_admin, caller.projects) == ("user/bob", True, frozenset({"demo"}))


@pytest.mark.parametrize("header", ["Bearer S3cret", "Bearer ", "Basic s3cret", "s3cret"])
def test_any_other_token_is_refused(tokens: Tokens, header: str) -> None:
    with pytest.raises(RemudaError) as caught:
        by_header(header, tokens)
    assert caught.value.reason is Reason.UNAUTHENTICATED


def test_a_service_without_tokens_ignores_them() -> None:
    assert by_header("Bearer s3cret", None) is ANONYMOUS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[tokens]]\n", "sha256"),
        ('[[tokens]]\nsha256 = "ab"\nprincipal = "bob"', "64 hexadecimal digits"),
        (FILE.replace('"bob"', '"a/b"'), "principal"),
        (FILE.replace('["demo"]', '"demo"'), "lists"),
        ("[[", "tokens.toml"),
    ],
)
def test_a_bad_tokens_file_says_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        TokensFile(path)


def test_a_tokens_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(FILE)
    tokens = TokensFile(path)
    assert by_header("Bearer s3cret", tokens).principal == "user/bob"
    other = tmp_path / "next"
    other.write_text(FILE.replace(hashlib.sha256(b"s3cret").hexdigest(), hashlib.sha256(b"new").hexdigest()))
    other.rename(path)
    with pytest.raises(RemudaError):
        by_header("Bearer s3cret", tokens)
    assert by_header("Bearer new", tokens).principal == "user/bob"


@pytest.mark.parametrize("trouble", ["broken", "gone"])
def test_a_tokens_file_that_breaks_leaves_the_tokens_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(FILE)
    tokens = TokensFile(path)
    if trouble == "gone":
        path.unlink()
    else:
        path.write_text("[[")
    for _ in range(3):
        assert by_header("Bearer s3cret", tokens).principal == "user/bob"
    (line,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert str(path) in line.getMessage()
    path.write_text("")
    with pytest.raises(RemudaError):
        by_header("Bearer s3cret", tokens)


def test_the_user_agent_counts_only_without_tls() -> None:
    metadata = {"user-agent": "remuda-identity=user/alice;admin;project:demo grpc-python-asyncio/1.85.1"}
    insecure = identify(auth_context={}, metadata=metadata, tokens=None, insecure=True)
    assert (insecure.principal, insecure.is_admin, insecure.projects) == (
        "user/alice",
        True,
        frozenset({"demo"}),
    )
    assert identify(auth_context={}, metadata=metadata, tokens=None, insecure=False) is ANONYMOUS
