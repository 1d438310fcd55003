"""Where to connect to, and as whom: flags, environment, context file."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from remuda_cli.failure import usage

DEFAULT_ENDPOINT = "127.0.0.1:7443"
DEFAULT_PROJECT = "default"
_LOOPBACK = ("127.", "localhost", "[::1]", "unix:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Everything that a channel is made of. Paths are PEM files."""

    endpoint: str = DEFAULT_ENDPOINT
    """host:port is TLS; http://host:port is plaintext."""
    token: str = ""
    cacert: str = ""
    """Empty: the system's authorities."""
    cert: str = ""
    key: str = ""
    server_name: str = ""
    """Name expected in the server's certificate; empty: the endpoint's."""
    project: str = DEFAULT_PROJECT

    @property
    def target(self) -> str:
        """What gRPC dials."""
        return self.endpoint.removeprefix("http://").removeprefix("https://").rstrip("/")

    @property
    def plaintext(self) -> bool:
        return self.endpoint.startswith("http://")


def load_contexts(environ: Mapping[str, str], *, named: str = "") -> Mapping[str, Any]:
    """The context file: `current = "lab"`, then `[contexts.lab] endpoint = ...`. A missing file is empty.

    ``named``: by --config. Raises Failure (usage) when the file named so, or by REMUDA_CONFIG, is missing,
    and when the text is not TOML.
    """
    whence = "--config" if named else "REMUDA_CONFIG"
    named = named or environ.get("REMUDA_CONFIG", "")
    path = Path(named) if named else _default_path(environ)
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        if named:
            raise usage(f"{whence} names {path}, which does not exist") from None
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise usage(f"{path}: {error}") from None


def resolve(
    *,
    environ: Mapping[str, str],
    contexts: Mapping[str, Any],
    context: str = "",
    endpoint: str = "",
    project: str = "",
) -> Connection:
    """Flags win. A context named by flag wins over the environment, the file's current one does not.

    Raises Failure (usage) for an unknown context, an unknown key in it, half a client certificate, and a
    token that would cross a network in plaintext.
    """
    entry = _entry(contexts, context or environ.get("REMUDA_CONTEXT", "") or str(contexts.get("current", "")))
    from_environ = {
        field.name: environ[variable]
        for field in fields(Connection)
        if environ.get(variable := f"REMUDA_{field.name.upper()}")
    }
    layers = {**from_environ, **entry} if context else {**entry, **from_environ}
    flags = {"endpoint": endpoint, "project": project}
    connection = Connection(**{**layers, **{key: value for key, value in flags.items() if value}})
    if bool(connection.cert) != bool(connection.key):
        raise usage("a client certificate needs both REMUDA_CERT and REMUDA_KEY")
    if connection.token and connection.plaintext and not connection.target.startswith(_LOOPBACK):
        raise usage(f"a token would go to {connection.endpoint} in plaintext; use host:port, which is TLS")
    return connection


def _entry(contexts: Mapping[str, Any], name: str) -> dict[str, str]:
    known = contexts.get("contexts", {})
    if not name:
        return {}
    if name not in known:
        listed = ", ".join(sorted(known)) or "none"
        raise usage(f"there is no context {name!r} in the context file; it has: {listed}")
    entry = dict(known[name])
    allowed = {field.name for field in fields(Connection)}
    if unknown := sorted(set(entry) - allowed):
        raise usage(f"context {name!r}: unknown key {unknown[0]!r}; known: {', '.join(sorted(allowed))}")
    if wrong := sorted(key for key, value in entry.items() if not isinstance(value, str)):
        raise usage(f"context {name!r}: {wrong[0]} must be a string")
    return entry


def _default_path(environ: Mapping[str, str]) -> Path:
    base = environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "remuda" / "contexts.toml"
