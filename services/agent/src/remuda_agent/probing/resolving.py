"""What this host's resolver answers: hosts file, DNS, whatever nsswitch.conf says."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from remuda.agent.v1 import probe_pb2 as pb
from remuda_core.rpc.context import timeout_for

from remuda_agent.bounded_calls import BoundedCalls

RESOLVE_SECONDS = 5.0


class Resolver:
    """getaddrinfo cannot be interrupted, and a name server that is gone makes it take half a minute."""

    def __init__(self, known: Mapping[str, str] | None = None) -> None:
        """`known`: host name to address, asked first: the names of fake hosts are in no resolver."""
        self._known = known or {}
        self._calls = BoundedCalls("resolver")

    async def resolve(self, hostname: str) -> pb.ResolveHostResponse:
        """Raises UNAVAILABLE while too many earlier questions hang."""
        if hostname in self._known:
            return pb.ResolveHostResponse(addresses=[self._known[hostname]])
        seconds = timeout_for(RESOLVE_SECONDS)
        try:
            addresses = await self._calls.call(lambda: _addresses(hostname), seconds=seconds)
        except TimeoutError:
            return pb.ResolveHostResponse(error=f"the resolver did not answer within {seconds:.1f} s")
        except (OSError, UnicodeError) as error:
            words = error.strerror if isinstance(error, OSError) else str(error)
            return pb.ResolveHostResponse(error=words or str(error))
        return pb.ResolveHostResponse(addresses=addresses)


def _addresses(hostname: str) -> list[str]:
    found = socket.getaddrinfo(hostname, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
