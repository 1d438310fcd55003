"""etcd's rpcs: their paths, messages, and whether they change anything.

Source: etcd api/etcdserverpb/rpc.proto (services KV, Watch, Lease, Auth, Maintenance).
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message
from remuda.etcd.v1 import etcd_pb2 as pb

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method(Generic[RequestT, ResponseT]):
    path: str
    request: type[RequestT]
    response: type[ResponseT]
    repeatable: bool = False
    """Sending it twice does what sending it once does, so that an unknown outcome is no trouble."""
    needs_leader: bool = True
    """A member that has no raft leader refuses at once, instead of keeping the caller waiting."""


RANGE = Method(
    path="/etcdserverpb.KV/Range", request=pb.RangeRequest, response=pb.RangeResponse, repeatable=True
)
PUT = Method(path="/etcdserverpb.KV/Put", request=pb.PutRequest, response=pb.PutResponse)
DELETE_RANGE = Method(
    path="/etcdserverpb.KV/DeleteRange", request=pb.DeleteRangeRequest, response=pb.DeleteRangeResponse
)
TXN = Method(path="/etcdserverpb.KV/Txn", request=pb.TxnRequest, response=pb.TxnResponse)
COMPACT = Method(
    path="/etcdserverpb.KV/Compact", request=pb.CompactionRequest, response=pb.CompactionResponse
)
LEASE_GRANT = Method(
    path="/etcdserverpb.Lease/LeaseGrant",
    request=pb.LeaseGrantRequest,
    response=pb.LeaseGrantResponse,
    # Only because this package always chooses the id itself: a second grant says "already exists".
    repeatable=True,
)
LEASE_REVOKE = Method(
    path="/etcdserverpb.Lease/LeaseRevoke",
    request=pb.LeaseRevokeRequest,
    response=pb.LeaseRevokeResponse,
    repeatable=True,
)
LEASE_TIME_TO_LIVE = Method(
    path="/etcdserverpb.Lease/LeaseTimeToLive",
    request=pb.LeaseTimeToLiveRequest,
    response=pb.LeaseTimeToLiveResponse,
    repeatable=True,
)
LEASE_LEASES = Method(
    path="/etcdserverpb.Lease/LeaseLeases",
    request=pb.LeaseLeasesRequest,
    response=pb.LeaseLeasesResponse,
    repeatable=True,
)
AUTHENTICATE = Method(
    path="/etcdserverpb.Auth/Authenticate",
    request=pb.AuthenticateRequest,
    response=pb.AuthenticateResponse,
    repeatable=True,
)
STATUS = Method(
    path="/etcdserverpb.Maintenance/Status",
    request=pb.StatusRequest,
    response=pb.StatusResponse,
    repeatable=True,
    needs_leader=False,
)

# Bidirectional streams.
WATCH = Method(path="/etcdserverpb.Watch/Watch", request=pb.WatchRequest, response=pb.WatchResponse)
LEASE_KEEP_ALIVE = Method(
    path="/etcdserverpb.Lease/LeaseKeepAlive",
    request=pb.LeaseKeepAliveRequest,
    response=pb.LeaseKeepAliveResponse,
    needs_leader=False,
)


def metadata(*, token: str | None, needs_leader: bool) -> tuple[tuple[str, str], ...]:
    """Call metadata: the login token, and `hasleader`.

    With `hasleader` a member cut off from its cluster ends a watch after about three election timeouts;
    without it such a watch stays open and silent for ever (etcd rpctypes/metadatafields.go).
    """
    pairs: list[tuple[str, str]] = []
    if token is not None:
        pairs.append(("token", token))
    if needs_leader:
        pairs.append(("hasleader", "true"))
    return tuple(pairs)
