"""Operations: the record, and google.longrunning.Operation."""

from google.longrunning import operations_pb2
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from remuda.compute.v1 import operation_pb2 as public
from remuda.store.v1 import operation_pb2 as records
from remuda_core.ids import OperationId
from remuda_core.names import operation_name


def operation_message(
    record: records.OperationRecord,
    *,
    cancel_requested: bool = False,
    progress: public.Progress | None = None,
) -> operations_pb2.Operation:
    """`progress`: live, and newer than anything in the record."""
    metadata = public.OperationMetadata()
    metadata.CopyFrom(record.metadata)
    metadata.cancel_requested = metadata.cancel_requested or cancel_requested
    if progress is not None:
        metadata.progress.CopyFrom(progress)
    message = operations_pb2.Operation(
        name=operation_name(OperationId(record.id)) if record.id else "",
        metadata=packed(metadata),
        done=record.done,
    )
    if record.done and record.HasField("error"):
        message.error.CopyFrom(record.error)
    elif record.done:
        message.response.CopyFrom(record.response)
    return message


def packed(message: Message) -> Any:
    found = Any()
    # The same bytes for the same message, so that a record written again is the same record.
    found.Pack(message, deterministic=True)
    return found
