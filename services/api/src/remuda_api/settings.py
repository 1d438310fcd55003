"""Settings of the gateway."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from remuda_core.config import EtcdSettings, Section, ServiceSettings
from remuda_core.rpc.tls import is_local


class TargetGroup(Section):
    """One entry of Prometheus' http_sd, served under /sd/targets."""

    targets: tuple[str, ...]
    """host:port of metrics endpoints."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Added to every sample, for example service = "agent"."""


class ApiSettings(ServiceSettings):
    """Environment: REMUDA_API_..."""

    etcd: EtcdSettings = EtcdSettings()
    token_listen: str = ""
    """A second address, for clients with a bearer token and without a certificate; empty: none."""
    tokens_file: Path | None = None
    """TOML with [[tokens]]: sha256, principal, roles, projects; read again whenever it changes."""
    image_stores: tuple[str, ...] = ()
    """host:port of every image store; all share one backend."""
    sd_targets: tuple[TargetGroup, ...] = ()
    """What Prometheus is told to scrape."""

    @model_validator(mode="after")
    def _tls_where_others_can_connect(self) -> Self:
        # The server refuses it too, but only once etcd has answered.
        addresses = [address for address in (self.listen, self.token_listen) if address]
        if self.tls is None and not all(map(is_local, addresses)):
            raise ValueError("without [tls] the gateway listens on loopback only")
        return self
