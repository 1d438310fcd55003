"""Who calls: from the certificate of the connection, or from a bearer token.

Certificates are identities of the mesh by their SPIFFE URI, spiffe://remuda/{service/<name>|host/<uuid>|
user/<name>}; the roles of a user are its subject's O fields: `admin`, `project:<name>`. A certificate of the
same authority without such a URI (libvirt's and QEMU's have none) is nobody.
"""

import hashlib
import hmac
import logging
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from remuda_core.auth.caller import ANONYMOUS, Caller, Kind
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import ProjectId

_log = logging.getLogger(__name__)

SPIFFE_PREFIX = "spiffe://remuda/"
INSECURE_IDENTITY = "remuda-identity="
"""First word of the user agent that replaces the certificate where there is no TLS, which is on loopback
only; a SPIFFE path and roles follow: `remuda-identity=user/alice;admin;project:demo`. The user agent belongs
to the connection, as a certificate does; metadata would have to be added to every call."""
_PROJECT_ROLE = "project:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A bearer token; only its digest is kept."""

    sha256: str
    """Lower-case hex."""
    principal: str
    """User name."""
    roles: tuple[str, ...] = ()
    projects: tuple[str, ...] = ()


class Tokens:
    """The tokens that are accepted."""

    def __init__(self, tokens: Iterable[Token] = ()) -> None:
        self._callers = _by_digest(tokens)

    def caller(self, token: str) -> Caller | None:
        digest = hashlib.sha256(token.encode()).digest()
        # Compared in constant time over all of them: how long it takes says nothing about any digest.
        found = [caller for known, caller in self._callers.items() if hmac.compare_digest(known, digest)]
        return found[0] if found else None


class TokensFile(Tokens):
    """The tokens of a TOML file: [[tokens]] with sha256, principal, roles, projects.

    The file is looked at with every call, which costs microseconds: one that is taken out of it is refused
    from then on. A file that cannot be read leaves the tokens as they were, and an error in the log.
    """

    def __init__(self, path: Path) -> None:
        """Raises ValueError for a file that cannot be read."""
        self._path = path
        # Before it is read: what is written meanwhile is then read again, and not missed.
        self._seen = _signature(path)
        super().__init__(_read(path))

    def caller(self, token: str) -> Caller | None:
        self._reload()
        return super().caller(token)

    def _reload(self) -> None:
        now = _signature(self._path)
        if now == self._seen:
            return
        self._seen = now
        try:
            self._callers = _by_digest(_read(self._path))
        except ValueError as error:
            _log.error("the tokens stay as they were: %s", error)
        else:
            _log.info("tokens file %s was read again: %d tokens", self._path, len(self._callers))


def identify(
    *,
    auth_context: Mapping[str, Iterable[bytes]],
    metadata: Mapping[str, str],
    tokens: Tokens | None,
    insecure: bool,
) -> Caller:
    """The caller; ANONYMOUS when nothing speaks for it. `metadata` has lower-case keys.

    A token goes before a certificate: the program that holds a certificate may act for a user.
    Raises RemudaError UNAUTHENTICATED for a token or certificate that is presented and not acceptable.
    """
    authorization = metadata.get("authorization", "")
    if authorization and tokens is not None:
        return _by_token(authorization, tokens)
    certificates = list(auth_context.get("x509_pem_cert", ()))
    if certificates:
        return by_certificate(certificates[0])
    user_agent = metadata.get("user-agent", "")
    if insecure and user_agent.startswith(INSECURE_IDENTITY):
        path, *roles = user_agent.removeprefix(INSECURE_IDENTITY).split()[0].split(";")
        return _by_path(path, roles)
    return ANONYMOUS


@lru_cache(maxsize=1024)
def by_certificate(pem: bytes) -> Caller:
    """The caller that a verified certificate stands for.

    Raises RemudaError UNAUTHENTICATED when it carries several mesh identities or one of an unknown kind.
    """
    certificate = x509.load_pem_x509_certificate(pem)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ANONYMOUS
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    paths = [uri.removeprefix(SPIFFE_PREFIX) for uri in uris if uri.startswith(SPIFFE_PREFIX)]
    if not paths:
        return ANONYMOUS
    if len(paths) > 1:
        raise _unauthenticated("the certificate carries several identities")
    organisations = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return _by_path(paths[0], [str(attribute.value) for attribute in organisations])


def _by_path(path: str, roles: Sequence[str]) -> Caller:
    kind, _, name = path.partition("/")
    if kind not in {Kind.USER, Kind.SERVICE, Kind.HOST} or not name or "/" in name:
        raise _unauthenticated(f"{path!r} is no identity of this mesh")
    if kind != Kind.USER:
        # What services and hosts may do is in the policy by their kind; roles are for people.
        return Caller(kind=Kind(kind), name=name)
    return Caller(
        kind=Kind.USER,
        name=name,
        roles=frozenset(role for role in roles if not role.startswith(_PROJECT_ROLE)),
        projects=frozenset(
            ProjectId(role.removeprefix(_PROJECT_ROLE)) for role in roles if role.startswith(_PROJECT_ROLE)
        ),
    )


def _by_token(authorization: str, tokens: Tokens) -> Caller:
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise _unauthenticated("only bearer tokens are accepted")
    caller = tokens.caller(token.strip())
    if caller is None:
        raise _unauthenticated("the token is not known")
    return caller


def _by_digest(tokens: Iterable[Token]) -> Mapping[bytes, Caller]:
    return {
        bytes.fromhex(token.sha256): Caller(
            kind=Kind.USER,
            name=token.principal,
            roles=frozenset(token.roles),
            projects=frozenset(ProjectId(name) for name in token.projects),
        )
        for token in tokens
    }


def _signature(path: Path) -> tuple[int, ...]:
    """Changes when the file is written, or replaced by another one; empty when there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)


def _read(path: Path) -> list[Token]:
    """Raises ValueError."""
    try:
        entries = tomllib.loads(path.read_text()).get("tokens", [])
        return [_token(entry) for entry in entries]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"tokens file {path}: {error}") from error


def _token(entry: Mapping[str, object]) -> Token:
    digest, principal = entry["sha256"], entry["principal"]
    roles, projects = entry.get("roles", []), entry.get("projects", [])
    if not isinstance(digest, str) or len(bytes.fromhex(digest)) != 32:
        raise ValueError("sha256 must be 64 hexadecimal digits")
    if not isinstance(principal, str) or not principal or "/" in principal:
        raise ValueError("principal must be a user name")
    if not isinstance(roles, list) or not isinstance(projects, list):
        raise ValueError("roles and projects must be lists")
    return Token(
        sha256=digest, principal=principal, roles=tuple(map(str, roles)), projects=tuple(map(str, projects))
    )


def _unauthenticated(message: str) -> RemudaError:
    return RemudaError(Reason.UNAUTHENTICATED, message)
