"""Every reason for which Remuda refuses or fails, and the one exception that carries them.

A reason is interface: callers branch on it, so it is never renamed and never reused. The table REASONS is
the only place that knows status codes; docs/errors.md is made from it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from grpc import StatusCode

DOMAIN = "remuda"
"""`domain` of every google.rpc.ErrorInfo."""


class Reason(StrEnum):
    """`reason` of the one google.rpc.ErrorInfo in every error."""

    ADDRESS_TAKEN = "ADDRESS_TAKEN"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    CANCELLED = "CANCELLED"
    COMMAND_REFUSED = "COMMAND_REFUSED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    DIGEST_MISMATCH = "DIGEST_MISMATCH"
    DISK_FULL = "DISK_FULL"
    DUPLICATE_HOST = "DUPLICATE_HOST"
    ENROLMENT_REFUSED = "ENROLMENT_REFUSED"
    ETAG_MISMATCH = "ETAG_MISMATCH"
    FILTER_INVALID = "FILTER_INVALID"
    FLAVOR_NOT_FOUND = "FLAVOR_NOT_FOUND"
    GRANT_REFUSED = "GRANT_REFUSED"
    GUEST_STOPPED = "GUEST_STOPPED"
    HOST_IN_USE = "HOST_IN_USE"
    HOST_NOT_CORDONED = "HOST_NOT_CORDONED"
    HOST_NOT_FOUND = "HOST_NOT_FOUND"
    HOST_UNREACHABLE = "HOST_UNREACHABLE"
    HYPERVISOR_ERROR = "HYPERVISOR_ERROR"
    IMAGE_INCOMPLETE = "IMAGE_INCOMPLETE"
    IMAGE_IN_USE = "IMAGE_IN_USE"
    IMAGE_NOT_ACTIVE = "IMAGE_NOT_ACTIVE"
    IMAGE_NOT_FOUND = "IMAGE_NOT_FOUND"
    IMAGE_REFUSED = "IMAGE_REFUSED"
    INSTANCE_BUSY = "INSTANCE_BUSY"
    INSTANCE_LOCKED = "INSTANCE_LOCKED"
    INSTANCE_NOT_FOUND = "INSTANCE_NOT_FOUND"
    INTERNAL = "INTERNAL"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    MEMORY_WOULD_BE_LOST = "MEMORY_WOULD_BE_LOST"
    MIGRATION_FAILED = "MIGRATION_FAILED"
    MIGRATION_NOT_FOUND = "MIGRATION_NOT_FOUND"
    MIGRATION_TIMEOUT = "MIGRATION_TIMEOUT"
    NETWORK_IN_USE = "NETWORK_IN_USE"
    NETWORK_NOT_FOUND = "NETWORK_NOT_FOUND"
    NO_ADDRESS_LEFT = "NO_ADDRESS_LEFT"
    NO_HOST_FITS = "NO_HOST_FITS"
    NO_LEADER = "NO_LEADER"
    NOT_LEADER = "NOT_LEADER"
    OPERATION_NOT_FOUND = "OPERATION_NOT_FOUND"
    OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
    PAGE_TOKEN_EXPIRED = "PAGE_TOKEN_EXPIRED"
    PAGE_TOKEN_INVALID = "PAGE_TOKEN_INVALID"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    PREFLIGHT_FAILED = "PREFLIGHT_FAILED"
    QUARANTINED = "QUARANTINED"
    QUIESCE_FAILED = "QUIESCE_FAILED"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    REQUEST_TOO_LARGE = "REQUEST_TOO_LARGE"
    REVISION_AHEAD = "REVISION_AHEAD"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    SOURCE_HOST_MISMATCH = "SOURCE_HOST_MISMATCH"
    STALE_EPOCH = "STALE_EPOCH"
    STALE_LEADER = "STALE_LEADER"
    STATE_FORBIDS_ACTION = "STATE_FORBIDS_ACTION"
    STEP_FAILED = "STEP_FAILED"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    UNAVAILABLE = "UNAVAILABLE"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    UPLOAD_OFFSET_MISMATCH = "UPLOAD_OFFSET_MISMATCH"


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a reason stands for."""

    code: StatusCode
    text: str
    """One sentence for docs/errors.md."""


_ABORTED = StatusCode.ABORTED
_INVALID = StatusCode.INVALID_ARGUMENT
_MISSING = StatusCode.NOT_FOUND
_REFUSED = StatusCode.FAILED_PRECONDITION
_FULL = StatusCode.RESOURCE_EXHAUSTED
_AWAY = StatusCode.UNAVAILABLE

REASONS: Mapping[Reason, Meaning] = MappingProxyType(
    {
        Reason.ADDRESS_TAKEN: Meaning(StatusCode.ALREADY_EXISTS, "Another port has the requested address."),
        Reason.ALREADY_EXISTS: Meaning(StatusCode.ALREADY_EXISTS, "The name or id is taken."),
        Reason.CANCELLED: Meaning(StatusCode.CANCELLED, "The operation was cancelled and undone."),
        Reason.COMMAND_REFUSED: Meaning(
            _REFUSED,
            "The migration does not take the command: its phase, or what it was begun with, forbids it.",
        ),
        Reason.DEADLINE_EXCEEDED: Meaning(
            StatusCode.DEADLINE_EXCEEDED, "The caller's or the service's own time was up."
        ),
        Reason.DIGEST_MISMATCH: Meaning(StatusCode.DATA_LOSS, "The bytes are not those that were announced."),
        Reason.DISK_FULL: Meaning(_FULL, "A storage pool or the image store has no room left."),
        Reason.DUPLICATE_HOST: Meaning(
            StatusCode.ALREADY_EXISTS, "A host with this UUID is attached already, with another boot id."
        ),
        Reason.ENROLMENT_REFUSED: Meaning(
            StatusCode.PERMISSION_DENIED, "The enrolment token is wrong, used up, or of another host."
        ),
        Reason.ETAG_MISMATCH: Meaning(_ABORTED, "The resource has changed since the etag was read."),
        Reason.FILTER_INVALID: Meaning(_INVALID, "The filter cannot be parsed, or names an unknown field."),
        Reason.FLAVOR_NOT_FOUND: Meaning(_MISSING, "There is no such flavor."),
        Reason.GRANT_REFUSED: Meaning(
            StatusCode.PERMISSION_DENIED, "The image grant is forged, expired, of another host or image."
        ),
        Reason.GUEST_STOPPED: Meaning(_REFUSED, "The guest stopped running while it was worked on."),
        Reason.HOST_IN_USE: Meaning(_REFUSED, "Instances or debts are still on the host."),
        Reason.HOST_NOT_CORDONED: Meaning(_REFUSED, "The host still takes new instances; cordon it first."),
        Reason.HOST_NOT_FOUND: Meaning(_MISSING, "There is no such host."),
        Reason.HOST_UNREACHABLE: Meaning(_AWAY, "The host's agent does not answer."),
        Reason.HYPERVISOR_ERROR: Meaning(StatusCode.INTERNAL, "libvirt or QEMU failed; its words follow."),
        Reason.IMAGE_INCOMPLETE: Meaning(
            _REFUSED,
            "The image names chunks that were neither sent for it nor known to its maker: send them first.",
        ),
        Reason.IMAGE_IN_USE: Meaning(_REFUSED, "Instances are based on the image."),
        Reason.IMAGE_NOT_ACTIVE: Meaning(_REFUSED, "The image has no complete, verified bytes."),
        Reason.IMAGE_NOT_FOUND: Meaning(_MISSING, "There is no such image, or the caller may not see it."),
        Reason.IMAGE_REFUSED: Meaning(
            _INVALID, "The file is not an acceptable disk: wrong format, backing file, data file, encrypted."
        ),
        Reason.INSTANCE_BUSY: Meaning(_ABORTED, "Another operation holds the instance; metadata names it."),
        Reason.INSTANCE_LOCKED: Meaning(_REFUSED, "The instance is locked."),
        Reason.INSTANCE_NOT_FOUND: Meaning(
            _MISSING, "There is no such instance, or the caller may not see it."
        ),
        Reason.INTERNAL: Meaning(
            StatusCode.INTERNAL, "A fault of Remuda; the request id finds it in the logs."
        ),
        Reason.INVALID_ARGUMENT: Meaning(_INVALID, "The request is malformed; each field is listed."),
        Reason.MEMORY_WOULD_BE_LOST: Meaning(
            _REFUSED, "The guest's memory would be dropped; ask for it with discard_memory."
        ),
        Reason.MIGRATION_FAILED: Meaning(_ABORTED, "The migration failed; the guest is where metadata says."),
        Reason.MIGRATION_NOT_FOUND: Meaning(_MISSING, "There is no such migration."),
        Reason.MIGRATION_TIMEOUT: Meaning(
            _ABORTED, "The migration did not reach its switch-over in time; the guest runs at the source."
        ),
        Reason.NETWORK_IN_USE: Meaning(_REFUSED, "Ports are still on the network."),
        Reason.NETWORK_NOT_FOUND: Meaning(_MISSING, "There is no such network."),
        Reason.NO_ADDRESS_LEFT: Meaning(_FULL, "The network's address range is used up."),
        Reason.NO_HOST_FITS: Meaning(_FULL, "No host passes every filter; the rejections are counted."),
        Reason.NO_LEADER: Meaning(_AWAY, "No scheduler leads at the moment; an election takes seconds."),
        Reason.NOT_LEADER: Meaning(
            _REFUSED, "This scheduler does not lead; metadata names the one that does."
        ),
        Reason.OPERATION_NOT_FOUND: Meaning(
            _MISSING, "There is no such operation, or the caller may not see it."
        ),
        Reason.OUTCOME_UNKNOWN: Meaning(
            StatusCode.UNKNOWN,
            "A write got no answer and may have happened; repeat with the same request_id.",
        ),
        Reason.PAGE_TOKEN_EXPIRED: Meaning(_ABORTED, "The pages' snapshot is gone; list again."),
        Reason.PAGE_TOKEN_INVALID: Meaning(_INVALID, "The page token is damaged, or of another query."),
        Reason.PERMISSION_DENIED: Meaning(
            StatusCode.PERMISSION_DENIED, "The caller is known and may not do this."
        ),
        Reason.PREFLIGHT_FAILED: Meaning(
            _REFUSED, "A condition of the move does not hold; each is listed, nothing was touched."
        ),
        Reason.QUARANTINED: Meaning(
            _AWAY, "The host was booted, and its copy of the guest is not started before it is confirmed."
        ),
        Reason.QUIESCE_FAILED: Meaning(
            _REFUSED, "The guest's file systems could not be frozen, and the request demands it."
        ),
        Reason.QUOTA_EXCEEDED: Meaning(_FULL, "The project would use more than its quota allows."),
        Reason.REQUEST_ID_REUSED: Meaning(_INVALID, "The request_id was used with another body."),
        Reason.REQUEST_TOO_LARGE: Meaning(
            _FULL, "The message, or what would have to be kept of it, is too large; repeating is useless."
        ),
        Reason.REVISION_AHEAD: Meaning(
            StatusCode.OUT_OF_RANGE,
            "The store has never been at the revision that remuda-min-revision names.",
        ),
        Reason.SHUTTING_DOWN: Meaning(_AWAY, "The service is stopping; try another replica."),
        Reason.SOURCE_HOST_MISMATCH: Meaning(_REFUSED, "The instance is not on the host that was asserted."),
        Reason.STALE_EPOCH: Meaning(_REFUSED, "The instance's ownership epoch is older than one seen here."),
        Reason.STALE_LEADER: Meaning(_REFUSED, "A newer leader has been seen; the older one's orders end."),
        Reason.STATE_FORBIDS_ACTION: Meaning(_REFUSED, "The instance's state does not allow the action."),
        Reason.STEP_FAILED: Meaning(StatusCode.INTERNAL, "A step of the operation failed on its host."),
        Reason.STORE_UNAVAILABLE: Meaning(_AWAY, "etcd or the image backend does not answer."),
        Reason.UNAUTHENTICATED: Meaning(
            StatusCode.UNAUTHENTICATED, "No acceptable certificate and no known token came with the call."
        ),
        Reason.UNAVAILABLE: Meaning(_AWAY, "The service cannot be reached, or is not ready."),
        Reason.UNIMPLEMENTED: Meaning(
            StatusCode.UNIMPLEMENTED, "This version does not serve the rpc, or not with these fields."
        ),
        Reason.UPLOAD_OFFSET_MISMATCH: Meaning(
            _ABORTED, "The frame does not go on where the upload stands; metadata says where that is."
        ),
    }
)

_NOT_FOUND: Mapping[str, Reason] = {
    "instances": Reason.INSTANCE_NOT_FOUND,
    "hosts": Reason.HOST_NOT_FOUND,
    "images": Reason.IMAGE_NOT_FOUND,
    "flavors": Reason.FLAVOR_NOT_FOUND,
    "networks": Reason.NETWORK_NOT_FOUND,
    "operations": Reason.OPERATION_NOT_FOUND,
    "migrations": Reason.MIGRATION_NOT_FOUND,
}


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong: `subject` is a field path of the request, or a resource name."""

    subject: str
    description: str


class RemudaError(Exception):
    """A refusal or failure that a caller is meant to understand."""

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after_seconds: float | None = None,
        violations: Sequence[Violation] = (),
        resource: str = "",
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        """One sentence for people."""
        self.metadata: Mapping[str, str] = dict(metadata or {})
        """Facts for programs, for example the operation that holds the instance."""
        self.retry_after_seconds = retry_after_seconds
        """Trying again after this long may succeed; None: nothing is known."""
        self.violations = tuple(violations)
        self.resource = resource
        """Name of the resource that is missing or exists already, empty when it is about something else."""

    @property
    def code(self) -> StatusCode:
        return REASONS[self.reason].code

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    def __repr__(self) -> str:
        return f"RemudaError({self.reason.value}, {self.message!r}, metadata={dict(self.metadata)!r})"


def not_found(name: str) -> RemudaError:
    """For a resource name; the reason follows from its collection."""
    collection = name.split("/")[-2] if "/" in name else ""
    if collection not in _NOT_FOUND:
        raise ValueError(f"{name!r} is no name of a resource")
    return RemudaError(_NOT_FOUND[collection], f"{name} does not exist", resource=name)


def already_exists(name: str, message: str = "") -> RemudaError:
    return RemudaError(Reason.ALREADY_EXISTS, message or f"{name} exists already", resource=name)


def invalid_argument(field: str, description: str) -> RemudaError:
    """One field is wrong; `field` is its path in the request, for example `instance.flavor`."""
    return RemudaError(
        Reason.INVALID_ARGUMENT, f"{field}: {description}", violations=[Violation(field, description)]
    )


def instance_busy(instance: str, operation: str) -> RemudaError:
    """Resource names of the instance, and of the operation that holds it."""
    return RemudaError(
        Reason.INSTANCE_BUSY,
        f"{operation} holds {instance}",
        metadata={"instance": instance, "operation": operation},
    )


def etag_mismatch(name: str, *, given: str, current: str) -> RemudaError:
    return RemudaError(
        Reason.ETAG_MISMATCH,
        f"{name} has changed: its etag is {current}, not {given}",
        metadata={"resource": name, "etag": current},
    )


def permission_denied(message: str, **metadata: str) -> RemudaError:
    return RemudaError(Reason.PERMISSION_DENIED, message, metadata=metadata)


def not_leader(*, endpoint: str, epoch: int) -> RemudaError:
    """`endpoint` is the leader's host:port, empty when this replica knows none; then NO_LEADER."""
    if not endpoint:
        return no_leader()
    return RemudaError(
        Reason.NOT_LEADER, f"{endpoint} leads", metadata={"endpoint": endpoint, "epoch": str(epoch)}
    )


def no_leader(retry_after_seconds: float = 1.0) -> RemudaError:
    return RemudaError(
        Reason.NO_LEADER, "no scheduler leads at the moment", retry_after_seconds=retry_after_seconds
    )
