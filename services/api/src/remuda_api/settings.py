"""Settings of the gateway."""

from pathlib import Path

from pydantic import Field
from remuda_core.config import EtcdSettings, Section, ServiceSettings


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
    """TOML with [[tokens]]: sha256, principal, roles, projects."""
    image_stores: tuple[str, ...] = ()
    """host:port of every image store; all share one backend."""
    sd_targets: tuple[TargetGroup, ...] = ()
    """What Prometheus is told to scrape."""
