"""What can go wrong with etcd, as the callers need to tell it apart.

The one question that matters after a failed write is: may it have been applied? `Unavailable` and every
other error here mean "no"; only `OutcomeUnknown` means "perhaps".
"""

from enum import Enum, auto
from typing import ClassVar

import grpc


class EtcdError(Exception):
    """Base of all errors of this package. Unless it is an `OutcomeUnknown`, a write was not applied."""

    permanent: ClassVar[bool] = False
    """The same request will be refused again: there is no point in trying later."""


class Unavailable(EtcdError):
    """etcd could not be asked before the deadline. A write was not applied; trying later is harmless."""


class OutcomeUnknown(EtcdError):
    """A write was sent and no answer came: it may have been applied, or may still be.

    Re-read, and decide from what is there; sending it again blindly may apply it twice. A transaction with
    a `witness` (see `Etcd.txn`) settles this by itself.
    """


class Compacted(EtcdError):
    """The history that was asked for is gone: list again, then watch from the revision of the list."""

    def __init__(self, message: str, *, compact_revision: int = 0) -> None:
        super().__init__(message)
        self.compact_revision = compact_revision
        """Oldest revision that etcd still has; 0 when it did not say."""


class HistoryRewritten(Compacted):
    """The store is older than what was seen before: etcd was restored from a backup. List again."""


class FutureRevision(EtcdError):
    """The revision that was asked for does not exist yet (a page token from before a restore)."""


class PermissionDenied(EtcdError):
    """The user's roles do not cover the key."""

    permanent = True


class AuthenticationFailed(EtcdError):
    """User or password is wrong, missing, or etcd has authentication switched off."""

    permanent = True


class NoSpace(EtcdError):
    """etcd is full (alarm NOSPACE): it refuses writes until it is compacted, defragmented and disarmed."""


class TooLarge(EtcdError):
    """The request or a value is beyond etcd's limits (1.5 MiB, 128 operations). Nothing was applied."""

    permanent = True


class LeaseNotFound(EtcdError):
    """The lease has expired or was revoked."""


class InvalidRequest(EtcdError):
    """etcd refuses the request as such; a bug in the caller."""

    permanent = True


class NotLeader(EtcdError):
    """This process is not, or no longer, the leader; nothing it says is valid any more."""

    def __init__(self, message: str, *, outcome_unknown: bool = False) -> None:
        super().__init__(message)
        self.outcome_unknown = outcome_unknown
        """The refused transaction may nevertheless have been applied while the leadership still held."""


class Verdict(Enum):
    """What a failed rpc says about what happened and what may be done next."""

    NOT_APPLIED = auto()
    """Never reached a member that works on it: anything may be sent again."""
    UNKNOWN = auto()
    """May have been applied: a read may be sent again, a write may not."""
    TOKEN = auto()
    """Refused because of the token, before anything was applied: log in and send again, once."""
    FATAL = auto()
    """etcd answered, the answer is no."""


_TOKEN_TROUBLE = (
    "invalid auth token",
    # A role or user was changed between the issue of the token and the apply: etcd's own client retries too.
    "revision of auth store is old",
)
_NEVER_PROPOSED = (
    # gRPC core had no ready connection: the request never left this process.
    "connections to all backends failing",
    "failed to connect to all addresses",
    # etcd refused before it proposed anything: metadata `hasleader`, or its queue is full.
    "etcdserver: no leader",
    "etcdserver: too many requests",
)
_REFUSALS = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)

_BY_DETAIL: tuple[tuple[str, type[EtcdError]], ...] = (
    ("has been compacted", Compacted),
    ("is a future revision", FutureRevision),
    ("permission denied", PermissionDenied),
    ("user name is empty", AuthenticationFailed),
    ("authentication failed", AuthenticationFailed),
    ("authentication is not enabled", AuthenticationFailed),
    ("database space exceeded", NoSpace),
    ("request is too large", TooLarge),
    # The Go server's text. gRPC core's own ("CLIENT: Received ...") is about an answer that came back too
    # large, when the request has long been applied.
    ("grpc: received message larger than max", TooLarge),
    ("too many operations", TooLarge),
    ("requested lease not found", LeaseNotFound),
)
_BY_CODE: dict[grpc.StatusCode, type[EtcdError]] = {
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationFailed,
    grpc.StatusCode.NOT_FOUND: LeaseNotFound,
    grpc.StatusCode.OUT_OF_RANGE: Compacted,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequest,
    grpc.StatusCode.UNIMPLEMENTED: InvalidRequest,
    grpc.StatusCode.RESOURCE_EXHAUSTED: TooLarge,
}


def judge(code: grpc.StatusCode, details: str) -> Verdict:
    """Sort a failed rpc. Texts are those of etcd's api/v3rpc/rpctypes/error.go and of gRPC core."""
    if any(text in details for text in _TOKEN_TROUBLE):
        return Verdict.TOKEN
    if code in _REFUSALS and any(text in details for text in _NEVER_PROPOSED):
        return Verdict.NOT_APPLIED
    if "Received message larger than max" in details:
        return Verdict.UNKNOWN
    if code in _BY_CODE:
        return Verdict.FATAL
    # UNAVAILABLE with any other text ("request timed out", "leader changed", a broken stream),
    # DEADLINE_EXCEEDED, INTERNAL, UNKNOWN, CANCELLED: the proposal may be in the raft log.
    return Verdict.UNKNOWN


def as_error(code: grpc.StatusCode, details: str) -> EtcdError:
    """The typed error for an rpc that `judge` found FATAL."""
    message = details or code.name
    for text, kind in _BY_DETAIL:
        if text in details:
            return kind(message)
    return _BY_CODE.get(code, InvalidRequest)(message)
