"""What preflight needs from the rest of the scheduler.

Implemented by hosts/ (ProbeAgents) and placement/ (Hosts); tests give their own.
"""

import math
from collections.abc import AsyncGenerator
from typing import Protocol

from remuda.agent.v1 import probe_pb2 as pb
from remuda.compute.v1.host_pb2 import HostInventory
from remuda_core.ids import HostId

from remuda_scheduler.placement.model import Plan
from remuda_scheduler.ports import PlacementRequest


class ProbeAgents(Protocol):
    """ProbeService of the hosts' agents.

    Every method raises RemudaError: HOST_UNREACHABLE whenever no answer came within `seconds`, any other
    reason is the agent's own word.
    """

    async def describe_guest(
        self, host: HostId, request: pb.DescribeGuestRequest, seconds: float
    ) -> pb.DescribeGuestResponse: ...

    async def assess_guest(
        self, host: HostId, request: pb.AssessGuestRequest, seconds: float
    ) -> pb.AssessGuestResponse: ...

    async def resolve_host(
        self, host: HostId, request: pb.ResolveHostRequest, seconds: float
    ) -> pb.ResolveHostResponse: ...

    def listen(
        self, host: HostId, request: pb.ListenRequest, seconds: float
    ) -> AsyncGenerator[pb.ListenResponse, None]:
        """Closing it ends the listener."""
        ...

    async def connect(
        self, host: HostId, request: pb.ConnectRequest, seconds: float
    ) -> pb.ConnectResponse: ...

    async def open_libvirt(
        self, host: HostId, request: pb.OpenLibvirtRequest, seconds: float
    ) -> pb.OpenLibvirtResponse: ...

    async def write_nonce(
        self, host: HostId, request: pb.WriteNonceRequest, seconds: float
    ) -> pb.WriteNonceResponse: ...

    async def read_nonce(
        self, host: HostId, request: pb.ReadNonceRequest, seconds: float
    ) -> pb.ReadNonceResponse: ...

    async def remove_nonce(
        self, host: HostId, request: pb.RemoveNonceRequest, seconds: float
    ) -> pb.RemoveNonceResponse: ...

    async def measure_dirty_rate(
        self, host: HostId, request: pb.MeasureDirtyRateRequest, seconds: float
    ) -> pb.MeasureDirtyRateResponse: ...


class Hosts(Protocol):
    """Placement's view of the cluster."""

    async def plan(self, request: PlacementRequest, *, patience: float = math.inf) -> Plan: ...

    def inventory(self, host: HostId) -> HostInventory:
        """The newest one; an empty one for a host that has never attached."""
        ...
