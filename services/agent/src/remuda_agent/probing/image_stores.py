"""Whether a base image could be fetched: does any image store answer this host?"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from remuda_core.rpc.context import timeout_for

SERVICE = "remuda.image.v1.ChunkService"
ANSWER_SECONDS = 3.0


class ImageStores:
    """Implements `assessing.ImageSources`. Asked for their health: a manifest costs a grant, which preflight
    has none of yet.
    """

    def __init__(self, channels: Mapping[str, grpc.aio.Channel]) -> None:
        """By endpoint. None at all: there is nothing to fetch, and no problem (hosts that only pretend)."""
        self._channels = dict(channels)

    async def problem(self) -> str:
        """Empty as soon as one serves; else what each of them said."""
        if not self._channels:
            return ""
        seconds = timeout_for(ANSWER_SECONDS)
        asked = [
            asyncio.create_task(_ask(endpoint, channel, seconds))
            for endpoint, channel in self._channels.items()
        ]
        try:
            troubles = []
            for answer in asyncio.as_completed(asked):
                trouble = await answer
                if not trouble:
                    return ""
                troubles.append(trouble)
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        return f"no image store can be reached: {'; '.join(sorted(troubles))}"


async def _ask(endpoint: str, channel: grpc.aio.Channel, seconds: float) -> str:
    stub: Any = HealthStub(channel)  # its stubs know the methods of servers only
    try:
        answer = await stub.Check(HealthCheckRequest(service=SERVICE), timeout=seconds)
    except grpc.aio.AioRpcError as error:
        return f"{endpoint}: {error.details() or error.code().name}"
    if answer.status == HealthCheckResponse.SERVING:
        return ""
    return f"{endpoint}: {HealthCheckResponse.ServingStatus.Name(answer.status)}"
