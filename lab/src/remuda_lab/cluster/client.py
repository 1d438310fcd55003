"""How to talk to a lab's api from the machine: certificates, a token, the CLI's context file, channels."""

from __future__ import annotations

import hashlib
import secrets
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from remuda_lab.cluster.toml_text import render
from remuda_lab.layout import LabPaths
from remuda_lab.pki import Authority, KeyPair, user_identity
from remuda_lab.python import console_script

PROJECT = "demo"
ADMIN = "admin"
USERS = {
    ADMIN: ("admin", f"project:{PROJECT}"),
    "alice": (f"project:{PROJECT}",),
    "mallory": ("project:other",),
}
"""User name to the roles in the certificate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabClient:
    """Files of users, made once per lab; ports of the forwarders."""

    directory: Path
    ca: Path
    port: int = 0
    """Of the api on 127.0.0.1, for clients with a certificate."""
    token_port: int = 0
    """The same for clients with a bearer token."""

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def token_endpoint(self) -> str:
        return f"127.0.0.1:{self.token_port}"

    @property
    def contexts(self) -> Path:
        """The CLI's context file: one context per user, and ``token``."""
        return self.directory / "contexts.toml"

    @property
    def environment_file(self) -> Path:
        """Shell lines that make an administrator of whoever reads them."""
        return self.directory / "env"

    @property
    def token(self) -> str:
        """alice's bearer token."""
        return self.token_file.read_text().strip()

    @property
    def token_file(self) -> Path:
        return self.directory / "token"

    def pair(self, user: str) -> KeyPair:
        return KeyPair(certificate=self.directory / user / "cert.pem", key=self.directory / user / "key.pem")

    def environment(self, user: str = ADMIN) -> dict[str, str]:
        """For the CLI, with a certificate."""
        pair = self.pair(user)
        return {
            "REMUDA_ENDPOINT": self.endpoint,
            "REMUDA_CACERT": str(self.ca),
            "REMUDA_CERT": str(pair.certificate),
            "REMUDA_KEY": str(pair.key),
            "REMUDA_PROJECT": PROJECT,
        }

    def token_environment(self) -> dict[str, str]:
        """For the CLI, with alice's token instead of a certificate."""
        return {
            "REMUDA_ENDPOINT": self.token_endpoint,
            "REMUDA_CACERT": str(self.ca),
            "REMUDA_TOKEN": self.token,
            "REMUDA_PROJECT": PROJECT,
        }

    @contextmanager
    def channel(self, user: str = ADMIN) -> Iterator[grpc.Channel]:
        """A gRPC channel with the user's certificate."""
        pair = self.pair(user)
        credentials = grpc.ssl_channel_credentials(
            self.ca.read_bytes(), pair.key.read_bytes(), pair.certificate.read_bytes()
        )
        # Short back-off: the api is often asked while it restarts.
        options = (("grpc.max_reconnect_backoff_ms", 500), ("grpc.use_local_subchannel_pool", 1))
        with grpc.secure_channel(self.endpoint, credentials, options=options) as channel:
            yield channel

    def write(self) -> None:
        """The context file and the environment file, once the ports are known."""
        contexts = {name: _context(self.environment(name)) for name in USERS}
        contexts["token"] = _context(self.token_environment())
        text = 'current = "admin"\n' + "".join(
            "\n" + render({f"contexts.{name}": entry}).lstrip() for name, entry in contexts.items()
        )
        self.contexts.write_text(text)
        exported = {
            **self.environment(),
            "REMUDA_TOKEN_ENDPOINT": self.token_endpoint,
            "REMUDA_TOKEN_FILE": str(self.token_file),
        }
        lines = [f"export {key}={shlex.quote(value)}\n" for key, value in exported.items()]
        # Where this very installation's `remuda`, `remuda-lab` and `buf` are.
        lines.append(f"export PATH={shlex.quote(str(Path(console_script('remuda')).parent))}:$PATH\n")
        self.environment_file.write_text("".join(lines))

    def how_to(self) -> list[str]:
        """Lines for a person's shell; the first one makes the others work."""
        certificate = '--cacert "$REMUDA_CACERT" --cert "$REMUDA_CERT" --key "$REMUDA_KEY"'
        token = '-H "Authorization: Bearer $(cat "$REMUDA_TOKEN_FILE")"'
        instances = f"""-d '{{"parent": "projects/{PROJECT}"}}' """
        service = "remuda.compute.v1.InstanceService/ListInstances"
        return [
            f". {shlex.quote(str(self.environment_file))}",
            "remuda host list",
            f"remuda --config {shlex.quote(str(self.contexts))} --context alice instance list",
            f"buf curl --protocol grpc {certificate} https://$REMUDA_ENDPOINT/remuda.compute.v1.HostService/ListHosts",
            f'buf curl --protocol grpc --cacert "$REMUDA_CACERT" {token} {instances}'
            f"https://$REMUDA_TOKEN_ENDPOINT/{service}",
            f"grpcurl {certificate.replace('--', '-')} $REMUDA_ENDPOINT list",
            f'grpcurl -cacert "$REMUDA_CACERT" {token} {instances}$REMUDA_TOKEN_ENDPOINT {service}',
        ]


def make_client(paths: LabPaths, authority: Authority) -> LabClient:
    """Issue the users' certificates and draw the token."""
    client = LabClient(directory=paths.client, ca=authority.certificate)
    for user, roles in USERS.items():
        authority.issue(user_identity(user, roles), paths.client / user)
    client.token_file.touch(mode=0o600)
    client.token_file.write_text(secrets.token_urlsafe(32) + "\n")
    return client


def tokens_file(client: LabClient) -> str:
    """What the api reads: the token's digest."""
    digest = hashlib.sha256(client.token.encode()).hexdigest()
    entry = {"sha256": digest, "principal": "alice", "roles": [], "projects": [PROJECT]}
    return render({"tokens": [entry]})


def _context(environment: dict[str, str]) -> dict[str, str]:
    return {key.removeprefix("REMUDA_").lower(): value for key, value in environment.items()}
