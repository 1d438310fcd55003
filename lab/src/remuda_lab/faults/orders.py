"""Orders given to an agent with a scheduler's certificate: what a leader of the past might still send."""

from __future__ import annotations

import asyncio

import grpc
from remuda.agent.v1.agent_pb2 import RunStepRequest, StepDone
from remuda.agent.v1.agent_pb2_grpc import AgentServiceStub
from remuda_core.rpc.channel import open_channel
from remuda_core.rpc.status import from_rpc_error
from remuda_core.rpc.tls import Tls

from remuda_lab.cluster import addresses
from remuda_lab.errors import LabError
from remuda_lab.mesh import Mesh


def give_order(mesh: Mesh, host: str, order: RunStepRequest, *, timeout: float = 30.0) -> StepDone:
    """Waits for the end of the step; ``timeout`` in seconds. Raises RemudaError: why it was refused."""
    return asyncio.run(_give(mesh, host, order, timeout))


async def _give(mesh: Mesh, host: str, order: RunStepRequest, timeout: float) -> StepDone:
    pki = mesh.lab.paths.pki
    pair = pki / "services" / "scheduler-1"
    tls = Tls(
        ca=(pki / "ca.pem").read_bytes(),
        cert=(pair / "cert.pem").read_bytes(),
        key=(pair / "key.pem").read_bytes(),
    )
    port = mesh.lab.forward(f"orders-{host}", addresses.agent(mesh.lab.plan(host)), port=0)
    async with open_channel(f"127.0.0.1:{port}", tls, server_name=host) as channel:
        try:
            async for message in AgentServiceStub(channel).RunStep(order, timeout=timeout):
                if message.HasField("done"):
                    return message.done
        except grpc.aio.AioRpcError as failure:
            raise from_rpc_error(failure) from failure
    raise LabError(f"{host} ended the stream without an answer")
