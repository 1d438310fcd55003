"""Enough virtual CPUs are offered. Overcommit is the agent's affair: it offers what it may."""

from remuda_scheduler.placement.model import Demand, HostFacts


def vcpus(host: HostFacts, demand: Demand) -> str | None:
    free = host.vcpus - host.used_vcpus
    return None if demand.vcpus <= free else f"{free} of {host.vcpus} vCPUs free, {demand.vcpus} needed"
