"""A hypervisor in memory. `FakeFabric` holds what hosts share, `FakeHypervisor` is one host's driver."""

from remuda_agent.hypervisor.fake.clock import Clock, ManualClock, WallClock
from remuda_agent.hypervisor.fake.driver import DEFAULT_CAPABILITIES, FakeHypervisor
from remuda_agent.hypervisor.fake.fabric import FakeFabric
from remuda_agent.hypervisor.fake.faults import Faults
from remuda_agent.hypervisor.fake.world import FakeTimings

__all__ = [
    "DEFAULT_CAPABILITIES",
    "Clock",
    "FakeFabric",
    "FakeHypervisor",
    "FakeTimings",
    "Faults",
    "ManualClock",
    "WallClock",
]
