"""What comes out of etcd: plain values, no protobuf."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from remuda.etcd.v1 import etcd_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyValue:
    """One key as it stood at some revision."""

    key: str
    value: bytes
    create_revision: int
    """Revision at which the key was created; rises when a deleted key is created again."""
    mod_revision: int
    """Revision of the last change: Remuda's etag."""
    version: int
    """Changes since creation, 1 for a new key."""
    lease: int = 0
    """Lease that removes the key when it ends, 0 for none."""


class EventKind(Enum):
    PUT = "PUT"
    DELETE = "DELETE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One change of one key. For DELETE, `kv` has no value and `mod_revision` is that of the deletion."""

    kind: EventKind
    kv: KeyValue


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchBatch:
    """All changes of one or more whole revisions, in order; a revision is never split over two batches.

    An empty batch says that nothing happened up to `revision`.
    """

    revision: int
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeResult:
    revision: int
    """Revision of the store that this shows."""
    kvs: tuple[KeyValue, ...]
    """In key order."""
    count: int
    """Keys in the range, also those that a limit cut off."""
    more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OpResult:
    """What one operation of a transaction gave."""

    kvs: tuple[KeyValue, ...] = ()
    """What a get found."""
    deleted: int = 0
    """How many keys a delete removed."""

    @property
    def kv(self) -> KeyValue | None:
        """The key of a get of one key, None when it does not exist."""
        return self.kvs[0] if self.kvs else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TxnResult:
    succeeded: bool
    """All comparisons held, and `success` was applied; otherwise `failure` was."""
    revision: int
    """Revision of the store after the transaction; that of its writes when it wrote."""
    responses: tuple[OpResult, ...]
    """One for each operation of the branch that was applied."""
    cluster_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What one member says about itself. Which member answers is not chosen."""

    version: str
    cluster_id: int
    member_id: int
    leader_id: int
    """Member id of the raft leader, 0 for none."""
    revision: int
    db_size_bytes: int
    db_size_in_use_bytes: int
    errors: tuple[str, ...]
    """Alarms, e.g. NOSPACE."""


def key_value(message: pb.KeyValue) -> KeyValue:
    return KeyValue(
        key=message.key.decode(),
        value=message.value,
        create_revision=message.create_revision,
        mod_revision=message.mod_revision,
        version=message.version,
        lease=message.lease,
    )


def key_values(messages: Iterable[pb.KeyValue]) -> tuple[KeyValue, ...]:
    return tuple(key_value(message) for message in messages)


def event(message: pb.Event) -> Event:
    kind = EventKind.DELETE if message.type == pb.Event.EVENT_TYPE_DELETE else EventKind.PUT
    return Event(kind=kind, kv=key_value(message.kv))


def range_result(message: pb.RangeResponse, *, revision: int = 0) -> RangeResult:
    """`revision`: the past one that was asked for; etcd's header always carries the present one."""
    return RangeResult(
        revision=revision or message.header.revision,
        kvs=key_values(message.kvs),
        count=message.count,
        more=message.more,
    )


def txn_result(message: pb.TxnResponse) -> TxnResult:
    return TxnResult(
        succeeded=message.succeeded,
        revision=message.header.revision,
        responses=tuple(_op_result(response) for response in message.responses),
        cluster_id=message.header.cluster_id,
    )


def _op_result(message: pb.ResponseOp) -> OpResult:
    match message.WhichOneof("response"):
        case "response_range":
            return OpResult(kvs=key_values(message.response_range.kvs))
        case "response_delete_range":
            return OpResult(deleted=message.response_delete_range.deleted)
        case _:
            return OpResult()
