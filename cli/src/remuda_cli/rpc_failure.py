"""google.rpc.Status to Failure: the exit code, and the next command to try.

Read from the status itself and not through remuda_core.rpc.status: a server may be newer than this
command, and a reason that is unknown here must keep its code and its name.
"""

from collections.abc import Callable, Mapping
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from remuda_core.errors import DOMAIN, Reason

from remuda_cli.exit_codes import ExitCode
from remuda_cli.failure import Failure

STATUS_KEY = "grpc-status-details-bin"

_EXIT_CODES: Mapping[int, ExitCode] = {
    code.value[0]: exit_code
    for exit_code, codes in {
        ExitCode.USAGE: (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE),
        ExitCode.NOT_FOUND: (grpc.StatusCode.NOT_FOUND,),
        ExitCode.CONFLICT: (
            grpc.StatusCode.ALREADY_EXISTS,
            grpc.StatusCode.ABORTED,
            grpc.StatusCode.FAILED_PRECONDITION,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        ),
        ExitCode.UNAVAILABLE: (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED),
        ExitCode.AUTHENTICATION: (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED),
    }.items()
    for code in codes
}

_Hint = Callable[[Mapping[str, str]], list[str]]


def _short(name: str) -> str:
    return name.rpartition("/")[2]


def _fixed(*hints: str) -> _Hint:
    return lambda _metadata: list(hints)


def _instance(verb: str) -> _Hint:
    return lambda metadata: [f"remuda instance {verb} {_short(metadata.get('instance', '')) or 'INSTANCE'}"]


def _busy(metadata: Mapping[str, str]) -> list[str]:
    operation = _short(metadata.get("operation", "")) or "OPERATION"
    return [f"remuda operation watch {operation}", f"remuda operation cancel {operation}"]


_HINTS: Mapping[str, _Hint] = {
    Reason.ALREADY_EXISTS: _fixed("the same command with another name"),
    Reason.DISK_FULL: _fixed("remuda host list -o wide"),
    Reason.ETAG_MISMATCH: _fixed("the same command again: the resource has changed in the meantime"),
    Reason.FLAVOR_NOT_FOUND: _fixed("remuda flavor list"),
    Reason.HOST_IN_USE: _fixed("remuda instance list -o wide"),
    Reason.HOST_NOT_CORDONED: _fixed("remuda host cordon HOST"),
    Reason.HOST_NOT_FOUND: _fixed("remuda host list"),
    Reason.HOST_UNREACHABLE: _fixed("remuda host list"),
    Reason.IMAGE_IN_USE: _fixed("remuda instance list -o wide"),
    Reason.IMAGE_NOT_ACTIVE: _fixed("remuda image list"),
    Reason.IMAGE_NOT_FOUND: _fixed("remuda image list"),
    Reason.INSTANCE_BUSY: _busy,
    Reason.INSTANCE_NOT_FOUND: _fixed("remuda instance list"),
    Reason.MEMORY_WOULD_BE_LOST: _fixed("the same command with --discard-memory, if the memory may go"),
    Reason.MIGRATION_NOT_FOUND: _fixed("remuda migration list --all"),
    Reason.MIGRATION_TIMEOUT: _fixed("the same command with --auto-converge or a larger --max-downtime"),
    Reason.NETWORK_IN_USE: _fixed("remuda instance list -o wide"),
    Reason.NETWORK_NOT_FOUND: _fixed("remuda network list"),
    Reason.NO_HOST_FITS: _fixed("remuda host list", "remuda host explain-placement --flavor FLAVOR"),
    Reason.NO_LEADER: _fixed("the same command again in some seconds: an election is going on"),
    Reason.OPERATION_NOT_FOUND: _fixed("remuda operation list"),
    Reason.SOURCE_HOST_MISMATCH: _instance("show"),
    Reason.STATE_FORBIDS_ACTION: _instance("actions"),
}

_HINTS_BY_EXIT: Mapping[ExitCode, list[str]] = {
    ExitCode.UNAVAILABLE: ["check REMUDA_ENDPOINT and REMUDA_CACERT, or --context"],
    ExitCode.AUTHENTICATION: ["check REMUDA_TOKEN, or REMUDA_CERT and REMUDA_KEY, or --context"],
}


def from_rpc_error(error: grpc.RpcError) -> Failure:
    """A call that failed; anything that is not a grpc.Call is a fault of this program."""
    return from_status(status_of(_call(error)))


def code_of(error: grpc.RpcError) -> grpc.StatusCode:
    return _call(error).code()


def _call(error: grpc.RpcError) -> grpc.Call:
    # Every error that a stub raises is its call as well, which the types do not say.
    call: Any = error
    if not isinstance(call, grpc.Call):
        raise TypeError(f"{error!r} carries no status")
    return call


def status_of(call: grpc.Call) -> status_pb2.Status:
    for key, value in call.trailing_metadata() or ():
        if key == STATUS_KEY and isinstance(value, bytes):
            return status_pb2.Status.FromString(value)
    code = call.code()
    return status_pb2.Status(code=code.value[0], message=call.details() or code.name)


def from_status(status: status_pb2.Status, *, exit_code: ExitCode | None = None) -> Failure:
    """`exit_code`: of an operation that was admitted and failed, whatever its code says."""
    info = error_details_pb2.ErrorInfo()
    ours = _unpack(status, info) and info.domain == DOMAIN
    request = error_details_pb2.RequestInfo()
    _unpack(status, request)
    by_code = _EXIT_CODES.get(status.code, ExitCode.FAILED)
    hint = _HINTS.get(info.reason) if ours else None
    return Failure(
        exit_code or by_code,
        status.message or _code_name(status.code),
        reason=info.reason if ours else _code_name(status.code),
        details=_details(status),
        hints=hint(info.metadata) if hint else _HINTS_BY_EXIT.get(exit_code or by_code, []),
        request_id=request.request_id,
    )


def _code_name(number: int) -> str:
    return next((code.name for code in grpc.StatusCode if code.value[0] == number), f"code {number}")


def _details(status: status_pb2.Status) -> list[str]:
    lines: list[str] = []
    bad = error_details_pb2.BadRequest()
    if _unpack(status, bad):
        lines += [f"{v.field}: {v.description}" for v in bad.field_violations]
    failed = error_details_pb2.PreconditionFailure()
    if _unpack(status, failed):
        lines += [f"{v.subject}: {v.description}" for v in failed.violations]
    quota = error_details_pb2.QuotaFailure()
    if _unpack(status, quota):
        lines += [f"{v.subject}: {v.description}" for v in quota.violations]
    retry = error_details_pb2.RetryInfo()
    if _unpack(status, retry):
        lines.append(f"trying again after {retry.retry_delay.ToTimedelta().total_seconds():g} s may help")
    return lines


def _unpack(status: status_pb2.Status, message: Message) -> bool:
    return any(detail.Unpack(message) for detail in status.details)
