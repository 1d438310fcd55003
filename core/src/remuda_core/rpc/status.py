"""RemudaError to google.rpc.Status and back, and what any exception means to a caller.

Every error carries exactly one ErrorInfo of our domain (AIP-193); further details where the code has one.
What goes out is cut to a size that fits into gRPC's trailers: see `clipping`.
"""

import asyncio
from collections.abc import Iterator
from typing import TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from remuda_core import names
from remuda_core.errors import DOMAIN, Reason, RemudaError, Violation
from remuda_core.etcd.errors import EtcdError, OutcomeUnknown, TooLarge
from remuda_core.rpc.clipping import clip_message, clips

STATUS_KEY = "grpc-status-details-bin"
_M = TypeVar("_M", bound=Message)
_BY_NUMBER = {code.value[0]: code for code in StatusCode}
_LARGEST_STATUS_BYTES = 4096
"""It travels in base64, beside its message: together they stay below the 8 KiB that gRPC allows."""

# Errors that did not come from a Remuda service: gRPC's own, a proxy's.
_FOREIGN: dict[StatusCode, Reason] = {
    StatusCode.UNAVAILABLE: Reason.UNAVAILABLE,
    StatusCode.DEADLINE_EXCEEDED: Reason.DEADLINE_EXCEEDED,
    StatusCode.CANCELLED: Reason.CANCELLED,
    StatusCode.UNAUTHENTICATED: Reason.UNAUTHENTICATED,
    StatusCode.PERMISSION_DENIED: Reason.PERMISSION_DENIED,
    StatusCode.INVALID_ARGUMENT: Reason.INVALID_ARGUMENT,
    StatusCode.UNIMPLEMENTED: Reason.UNIMPLEMENTED,
}
# gRPC's own words about a message beyond its limit; others say RESOURCE_EXHAUSTED when they limit rates.
_TOO_LARGE = "larger than max"


def to_status(error: RemudaError, *, request_id: str = "") -> status_pb2.Status:
    """Also what is stored in operations; `request_id` becomes a RequestInfo. Long texts are cut."""
    status = status_pb2.Status()
    for clip in clips():
        status = status_pb2.Status(code=error.code.value[0], message=clip_message(error.message))
        for detail in _details(clip(error), request_id):
            status.details.add().Pack(detail)
        if status.ByteSize() <= _LARGEST_STATUS_BYTES:
            break
    return status


def from_status(status: status_pb2.Status) -> RemudaError:
    """The error that `to_status` was given. One of another domain keeps its message and becomes the nearest
    reason for its code; a reason that this version does not know becomes INTERNAL and stays in metadata.
    """
    info = _unpacked(status, error_details_pb2.ErrorInfo())
    code = code_of_number(status.code)
    if info is None or info.domain != DOMAIN:
        reason, metadata = _foreign(code, status.message), {"code": code.name}
    elif info.reason in Reason.__members__:
        reason, metadata = Reason(info.reason), dict(info.metadata)
    else:
        reason, metadata = Reason.INTERNAL, {**info.metadata, "reason": info.reason}
    retry = _unpacked(status, error_details_pb2.RetryInfo())
    resource = _unpacked(status, error_details_pb2.ResourceInfo())
    return RemudaError(
        reason,
        status.message,
        metadata=metadata,
        retry_after_seconds=None if retry is None else retry.retry_delay.ToTimedelta().total_seconds(),
        violations=list(_violations(status)),
        resource="" if resource is None else resource.resource_name,
    )


def _foreign(code: StatusCode, message: str) -> Reason:
    if code is StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in message:
        return Reason.REQUEST_TOO_LARGE
    return _FOREIGN.get(code, Reason.INTERNAL)


def code_of_number(number: int) -> StatusCode:
    """google.rpc.Code as gRPC's enum, UNKNOWN for a number that is none."""
    return _BY_NUMBER.get(number, StatusCode.UNKNOWN)


def request_id_of(status: status_pb2.Status) -> str:
    """The id under which the failing service logged it, empty when it did not say."""
    info = _unpacked(status, error_details_pb2.RequestInfo())
    return "" if info is None else info.request_id


def rpc_error_status(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """The rich status of a failed call; made from code and details where none came."""
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_KEY and isinstance(value, bytes):
            return status_pb2.Status.FromString(value)
    return status_pb2.Status(code=error.code().value[0], message=error.details() or error.code().name)


def from_rpc_error(error: grpc.aio.AioRpcError) -> RemudaError:
    """What a failed call to another service means; raise it `from` the original."""
    return from_status(rpc_error_status(error))


def from_exception(error: BaseException) -> RemudaError | None:
    """What a caller is told about an exception; None when it is a fault that must be logged (INTERNAL)."""
    match error:
        case RemudaError():
            return error
        case grpc.aio.AioRpcError():
            return from_rpc_error(error)
        case OutcomeUnknown():
            return RemudaError(Reason.OUTCOME_UNKNOWN, "etcd did not say whether the write was applied")
        case TooLarge():
            return RemudaError(Reason.REQUEST_TOO_LARGE, "what would have to be kept of it is too large")
        case EtcdError(permanent=True):
            # This service may not, or cannot, ask what it asks: the operator's business, and no reason to
            # let clients try for ever.
            return None
        case EtcdError():
            return RemudaError(Reason.STORE_UNAVAILABLE, f"etcd: {error}", retry_after_seconds=1.0)
        case asyncio.TimeoutError():
            return RemudaError(Reason.DEADLINE_EXCEEDED, "it took too long")
        case _:
            return None


def internal(request_id: str) -> RemudaError:
    """For a fault: its text may hold what the caller must not see, so only the id goes out."""
    return RemudaError(Reason.INTERNAL, f"internal error; the logs have it under request id {request_id}")


def _details(error: RemudaError, request_id: str) -> Iterator[Message]:
    yield error_details_pb2.ErrorInfo(reason=error.reason.value, domain=DOMAIN, metadata=dict(error.metadata))
    if error.violations and error.code is StatusCode.INVALID_ARGUMENT:
        yield error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(field=v.subject, description=v.description)
                for v in error.violations
            ]
        )
    elif error.violations:
        yield error_details_pb2.PreconditionFailure(
            violations=[
                error_details_pb2.PreconditionFailure.Violation(
                    type=error.reason.value, subject=v.subject, description=v.description
                )
                for v in error.violations
            ]
        )
    if error.resource:
        yield error_details_pb2.ResourceInfo(
            resource_type=names.collection_of(error.resource), resource_name=error.resource
        )
    if error.retry_after_seconds is not None:
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_after_seconds * 1e9))
        yield error_details_pb2.RetryInfo(retry_delay=delay)
    if request_id:
        yield error_details_pb2.RequestInfo(request_id=request_id)


def _violations(status: status_pb2.Status) -> Iterator[Violation]:
    bad = _unpacked(status, error_details_pb2.BadRequest())
    if bad is not None:
        yield from (Violation(v.field, v.description) for v in bad.field_violations)
    failed = _unpacked(status, error_details_pb2.PreconditionFailure())
    if failed is not None:
        yield from (Violation(v.subject, v.description) for v in failed.violations)


def _unpacked(status: status_pb2.Status, message: _M) -> _M | None:
    return next((message for detail in status.details if detail.Unpack(message)), None)
