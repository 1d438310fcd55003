"""The configuration file of every service of a lab, as data. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from remuda_lab.cluster import addresses
from remuda_lab.cluster.toml_text import Value
from remuda_lab.host_files import BOOT_ID_FILE, MIGRATION_PORTS
from remuda_lab.layout import LOCAL_POOL, SHARED_POOL, HostPlan, LabPaths
from remuda_lab.pki import KeyPair

PHYSICAL_NETWORK = "physnet"
BRIDGE = "br0"
HOST_CONFIG = "/etc/remuda"
"""Inside a host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What differs between labs."""

    election_ttl_seconds: int = 5
    unreachable_after_seconds: int = 5
    patience_seconds: int = 60
    domain_type: str = "qemu"
    log_level: str = "info"


def api(
    paths: LabPaths, pair: KeyPair, options: Options, *, tokens: Path, hosts: Sequence[HostPlan]
) -> dict[str, Value]:
    return {
        **_service(paths, "api", pair, options),
        "token_listen": addresses.text(addresses.token_address()),
        "tokens_file": tokens,
        "image_stores": [addresses.text(addresses.service("image-store"))],
        "sd_targets": targets(hosts),
        **_etcd(),
    }


def scheduler(
    paths: LabPaths, name: str, pair: KeyPair, options: Options, *, grant_key: Path
) -> dict[str, Value]:
    return {
        **_service(paths, name, pair, options),
        "name": name,
        "advertise": addresses.text(addresses.service(name)),
        "election_ttl_seconds": options.election_ttl_seconds,
        "unreachable_after_seconds": options.unreachable_after_seconds,
        "patience_seconds": options.patience_seconds,
        "grant_key": grant_key,
        **_etcd(),
    }


def image_store(
    paths: LabPaths, pair: KeyPair, options: Options, *, grant_public_key: Path
) -> dict[str, Value]:
    return {
        **_service(paths, "image-store", pair, options),
        "backend": f"file://{paths.image_store / 'chunks'}",
        "scratch_dir": paths.image_store / "scratch",
        "grant_public_key": grant_public_key,
        **_etcd(),
    }


def agent(plan: HostPlan, options: Options, *, token: str) -> dict[str, Value]:
    """All paths are the host's."""
    pools: list[Value] = [{"name": "local", "path": LOCAL_POOL}]
    if plan.shares_pool:
        pools.append({"name": "shared", "path": SHARED_POOL, "shared": True})
    return {
        "listen": addresses.text(addresses.agent(plan)),
        "advertise": addresses.text(addresses.agent(plan)),
        "metrics_listen": addresses.text(addresses.agent_metrics(plan)),
        "log_level": options.log_level,
        "name": plan.name,
        "host_uuid": plan.uuid,
        "lab": True,
        "schedulers": [addresses.text(addresses.service(name)) for name in addresses.SCHEDULERS],
        "image_stores": [addresses.text(addresses.service("image-store"))],
        "domain_type": options.domain_type,
        "boot_id_file": BOOT_ID_FILE,
        "enrolment_token": token,
        # All hosts are one machine: what it keeps for itself is kept once too often already.
        "reserved_memory_mib": 256,
        "pools": pools,
        "tls": {name: f"{HOST_CONFIG}/tls/{name}.pem" for name in ("ca", "cert", "key")},
        "bridges": {PHYSICAL_NETWORK: BRIDGE},
        "migration": {
            "transport": "tls",
            "address": str(plan.address),
            "port_min": MIGRATION_PORTS[0],
            "port_max": MIGRATION_PORTS[1],
        },
    }


def targets(hosts: Sequence[HostPlan]) -> list[Value]:
    """What the api tells Prometheus to scrape."""
    groups: list[tuple[str, str, tuple[str, int]]] = [
        ("api", "api", addresses.service_metrics("api")),
        *(("scheduler", name, addresses.service_metrics(name)) for name in addresses.SCHEDULERS),
        ("image-store", "image-store", addresses.service_metrics("image-store")),
        ("etcd", "etcd", addresses.ETCD),
        *(("agent", plan.name, addresses.agent_metrics(plan)) for plan in hosts),
    ]
    return [
        {"targets": [addresses.text(address)], "labels": {"service": service, "replica": replica}}
        for service, replica, address in groups
    ]


def prometheus() -> str:
    """prometheus.yml; JSON is YAML too."""
    discovery = f"http://{addresses.text(addresses.service_metrics('api'))}/sd/targets"
    return json.dumps(
        {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
            "scrape_configs": [
                {"job_name": "remuda", "http_sd_configs": [{"url": discovery, "refresh_interval": "5s"}]}
            ],
        },
        indent=1,
    )


def prometheus_command(paths: LabPaths) -> list[str]:
    return [
        "prometheus",
        f"--config.file={paths.config / 'prometheus.yml'}",
        f"--storage.tsdb.path={paths.root / 'prometheus'}",
        f"--web.listen-address={addresses.text(addresses.PROMETHEUS)}",
        "--log.level=warn",
    ]


def etcd_command(paths: LabPaths) -> list[str]:
    """fsync stays on: tests kill services, and a lab may be what somebody measures."""
    client, peer = (f"http://{addresses.text(a)}" for a in (addresses.ETCD, addresses.ETCD_PEER))
    return [
        *("etcd", "--name", "lab", "--data-dir", str(paths.etcd)),
        *("--listen-client-urls", client, "--advertise-client-urls", client),
        *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
        *("--initial-cluster", f"lab={peer}", "--logger", "zap", "--log-level", "warn"),
    ]


def _service(paths: LabPaths, name: str, pair: KeyPair, options: Options) -> dict[str, Value]:
    return {
        "listen": addresses.text(addresses.service(name)),
        "metrics_listen": addresses.text(addresses.service_metrics(name)),
        "log_level": options.log_level,
        "tls": {"ca": paths.pki / "ca.pem", "cert": pair.certificate, "key": pair.key},
    }


def _etcd() -> dict[str, Value]:
    return {"etcd": {"endpoints": [addresses.text(addresses.ETCD)]}}
