"""The source's half of the transport probe: a TCP connection as QEMU will make it."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import time
from contextlib import suppress

from remuda.agent.v1 import probe_pb2 as pb

from remuda_agent.probing.resolving import Resolver


class Connector:
    """Names go through the agent's own resolver: asyncio's few threads could all hang in a dead one."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    async def connect(self, address: str, port: int, nonce: bytes, *, patience: float) -> pb.ConnectResponse:
        """Send the nonce and wait until the other side has taken it. Every failure is an answer, the last
        address's when a name has several.
        """
        try:
            async with asyncio.timeout(patience):
                answer, found = pb.ConnectResponse(), [address]
                if not _is_numeric(address):
                    resolved = await self._resolver.resolve(address)
                    answer.error = f"{address} is not resolved: {resolved.error}"
                    found = list(resolved.addresses)
                for one in found:
                    answer = await _connect(one, port, nonce)
                    if answer.connected:
                        break
                return answer
        except TimeoutError:
            return pb.ConnectResponse(error=f"no answer within {patience:g} s")


async def _connect(address: str, port: int, nonce: bytes) -> pb.ConnectResponse:
    started = time.monotonic()
    try:
        reader, writer = await asyncio.open_connection(address, port)
        stood = time.monotonic()
        try:
            writer.write(nonce)
            writer.write_eof()
            # Closing while bytes are under way could take them back: the listener closes, having them.
            with suppress(ConnectionError):
                await reader.read()
        finally:
            writer.close()
    except TimeoutError:
        # The kernel's own, ETIMEDOUT; the caller's patience comes as a cancellation.
        return pb.ConnectResponse(error="the connection timed out")
    except OSError as error:
        return pb.ConnectResponse(error=_words(error))
    return pb.ConnectResponse(connected=True, duration_ms=round(1000 * (stood - started)))


def _is_numeric(address: str) -> bool:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True


def _words(error: OSError) -> str:
    """asyncio's own texts repeat the address."""
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if error.errno and error.errno > 0:
        return os.strerror(error.errno).lower()
    return error.strerror or str(error)
