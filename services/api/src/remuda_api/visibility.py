"""What a caller is shown of an operation. Pure.

Owners of instances see the ids of the hosts that their own instances are on, and nothing else of hosts:
neither how they are called, nor what they have left, which placement explains host by host.
"""

from google.longrunning.operations_pb2 import Operation
from remuda.compute.v1.operation_pb2 import OperationMetadata
from remuda_core.auth.caller import Caller

from remuda_api.store.operations import packed


def shown_to(caller: Caller, operation: Operation) -> Operation:
    """The operation itself, or a copy that explains placement by counts only."""
    if caller.sees_hosts:
        return operation
    metadata = OperationMetadata()
    if not operation.metadata.Unpack(metadata) or not metadata.HasField("placement"):
        return operation
    del metadata.placement.hosts[:]
    metadata.placement.chosen_host = ""
    shown = Operation()
    shown.CopyFrom(operation)
    shown.metadata.CopyFrom(packed(metadata))
    return shown
