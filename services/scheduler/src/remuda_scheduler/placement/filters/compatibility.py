"""The guest can run there: architecture; for a live guest also domain type, machine type, transport."""

from remuda_scheduler.placement.model import Demand, HostFacts


def compatibility(host: HostFacts, demand: Demand) -> str | None:
    for noun, has, needs in (
        ("architecture", host.architecture, demand.architecture),
        ("domain type", host.domain_type, demand.domain_type),
        ("migration transport", host.migration_transport, demand.migration_transport),
    ):
        if needs and has != needs:
            return f"{noun} is {has or 'unknown'}, {needs} is needed"
    if demand.machine_type and demand.machine_type not in host.machine_types:
        return f"QEMU there does not know the machine type {demand.machine_type}"
    return None
