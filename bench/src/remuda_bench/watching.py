"""An operation, watched until its end: the moment at which a user knows."""

from __future__ import annotations

from remuda.compute.v1 import operation_pb2
from remuda.compute.v1.operation_pb2 import OperationMetadata
from remuda_lab.errors import LabError
from remuda_lab.mesh import Mesh, unpack_metadata


def watched(mesh: Mesh, name: str, *, timeout: float = 120.0) -> OperationMetadata:
    """Its metadata at the end, well or not; ``timeout`` in seconds. Raises LabError when the stream ends
    before the operation, grpc.RpcError.
    """
    request = operation_pb2.WatchOperationRequest(name=name)
    for message in mesh.watches.WatchOperation(request, timeout=timeout):
        if message.operation.done:
            return unpack_metadata(message.operation)
    raise LabError(f"the watch of {name} ended before it")


def done(mesh: Mesh, name: str, *, timeout: float) -> OperationMetadata:
    """As ``watched``; raises LabError, with the operation's own words, when it did not do what was asked."""
    ended = watched(mesh, name, timeout=timeout)
    if ended.state != OperationMetadata.STATE_DONE:
        raise LabError(f"{ended.action} of {ended.target} failed: {mesh.operation(name).error}")
    return ended
