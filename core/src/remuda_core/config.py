"""Settings of a service: defaults < TOML file (--config) < environment < flags.

Environment variables are PREFIX + the path in upper case, nested by "__": REMUDA_API_ETCD__ENDPOINTS. Flags
are --etcd.endpoints=..., with - or _ between words; lists are JSON in both. An unknown key is an error, but
for the environment's.
"""

import argparse
import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from remuda_core.etcd.config import EtcdConfig
from remuda_core.rpc.tls import Tls

S = TypeVar("S", bound="ServiceSettings")


class ConfigError(Exception):
    """The configuration cannot be used; one readable sentence."""


class Section(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TlsSettings(Section):
    """PEM files."""

    ca: Path
    cert: Path | None = None
    key: Path | None = None

    def read(self) -> Tls:
        """Raises ConfigError when a file cannot be read, or certificate and key do not come together."""
        try:
            return Tls(ca=_pem(self.ca), cert=_optional_pem(self.cert), key=_optional_pem(self.key))
        except ValueError as error:
            raise ConfigError(f"configuration: {error}") from error


class EtcdSettings(Section):
    """How to reach etcd."""

    endpoints: tuple[str, ...] = ("127.0.0.1:2379",)
    prefix: str = Field(default="/remuda/v1/", pattern=r"^/.*/$")
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str | None = None
    user: str | None = None
    password: str | None = Field(default=None, repr=False)
    timeout_seconds: float = Field(default=5.0, gt=0)

    def client_config(self) -> EtcdConfig:
        """Raises ConfigError when a file cannot be read or the fields do not go together."""
        try:
            return EtcdConfig(
                endpoints=self.endpoints,
                ca=_optional_pem(self.ca),
                cert=_optional_pem(self.cert),
                key=_optional_pem(self.key),
                server_name=self.server_name,
                user=self.user,
                password=self.password,
                timeout_seconds=self.timeout_seconds,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error


class ServiceSettings(BaseSettings):
    """What every service has; each adds its own fields in a subclass."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    listen: str
    """host:port of the gRPC server; port 0 for any."""
    metrics_listen: str = "127.0.0.1:0"
    """host:port of plain HTTP: /metrics, /healthz."""
    tls: TlsSettings | None = None
    """None only on loopback."""
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")
    drain_seconds: float = Field(default=10.0, ge=0)

    def read_tls(self) -> Tls | None:
        return None if self.tls is None else self.tls.read()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # Constructing settings reads nothing by itself: `load` merges the sources, tests pass arguments.
        return (init_settings,)


def load(
    settings: type[S], argv: Sequence[str], env_prefix: str, *, environ: Mapping[str, str] | None = None
) -> S:
    """Raises ConfigError; SystemExit 0 for --help. `environ`: os.environ unless given."""
    program = env_prefix.strip("_").lower().replace("_", "-")
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    known, rest = first.parse_known_args(list(argv))
    try:
        merged: dict[str, Any] = {}
        for layer in (
            _file(known.config),
            _environment(settings, env_prefix, os.environ if environ is None else environ),
            _flags(settings, program, rest),
        ):
            merged = _over(merged, layer)
        return settings(**merged)
    except ValidationError as error:
        raise ConfigError(_sentence(error)) from error
    except SettingsError as error:
        raise ConfigError(f"configuration: {error.__cause__ or error}") from error


def load_or_exit(settings: type[S], argv: Sequence[str], env_prefix: str) -> S:
    """`load` for a main: an error is one line on stderr and exit status 2."""
    try:
        return load(settings, argv, env_prefix)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from error


def _file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration: {path}: {error}") from error


def _environment(settings: type[BaseSettings], prefix: str, environ: Mapping[str, str]) -> dict[str, Any]:
    source = EnvSettingsSource(settings, env_prefix=prefix, env_nested_delimiter="__")
    # The source has read os.environ by now; what the caller gave counts, with keys in lower case as it wants.
    source.env_vars = {key.lower(): value for key, value in environ.items()}
    return source()


def _flags(settings: type[BaseSettings], program: str, argv: Sequence[str]) -> dict[str, Any]:
    source = CliSettingsSource[Any](
        settings, cli_prog_name=program, cli_exit_on_error=False, cli_avoid_json=False
    )
    return source(args=[_underscored(argument) for argument in argv])()


def _underscored(argument: str) -> str:
    """--facts-override=a-b as the fields are called: --facts_override=a-b."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return f"--{flag.removeprefix('--').replace('-', '_')}{equals}{value}"


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Tables are merged key by key; anything else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = _over(old, value) if both and isinstance(old, Mapping) else value
    return merged


def _sentence(error: ValidationError) -> str:
    troubles = []
    for one in error.errors(include_url=False):
        path = ".".join(str(part) for part in one["loc"])
        troubles.append(f"{path}: {one['msg'][:1].lower()}{one['msg'][1:]}")
    return f"configuration: {'; '.join(troubles)}"


def _pem(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"configuration: {error}") from error


def _optional_pem(path: Path | None) -> bytes | None:
    return None if path is None else _pem(path)
