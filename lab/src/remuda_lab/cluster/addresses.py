"""Where each service of a lab listens: pure data. Ports repeat, because every service has an address."""

from __future__ import annotations

from remuda_lab.layout import SERVICE_ADDRESSES, HostPlan

SCHEDULERS = ("scheduler-1", "scheduler-2")
METRICS_PORT = 9464
TOKEN_PORT = 7453
"""The api's second port: a bearer token instead of a certificate."""
PROMETHEUS = ("10.77.0.1", 9090)
ETCD = ("127.0.0.1", 2379)
"""Loopback of the fabric: hosts cannot reach it, as it should be."""
ETCD_PEER = ("127.0.0.1", 2380)

_PORTS = {"api": 7443, "scheduler-1": 7444, "scheduler-2": 7444, "image-store": 7445}
_AGENT_PORT = 7446


def service(name: str) -> tuple[str, int]:
    """The gRPC address of api, scheduler-1, scheduler-2 or image-store."""
    return str(SERVICE_ADDRESSES[name]), _PORTS[name]


def service_metrics(name: str) -> tuple[str, int]:
    return str(SERVICE_ADDRESSES[name]), METRICS_PORT


def token_address() -> tuple[str, int]:
    return str(SERVICE_ADDRESSES["api"]), TOKEN_PORT


def agent(plan: HostPlan) -> tuple[str, int]:
    return str(plan.address), _AGENT_PORT


def agent_metrics(plan: HostPlan) -> tuple[str, int]:
    return str(plan.address), METRICS_PORT


def text(address: tuple[str, int]) -> str:
    """host:port"""
    return f"{address[0]}:{address[1]}"
