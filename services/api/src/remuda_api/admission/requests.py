"""request_id: the same id gives the same answer, also after a crash; with another body it is refused.

The record stands in the transaction that does the work, so that there is never one without the other. All
records of an hour share one lease: it ends a day after the hour, and etcd removes them.
"""

import hashlib
import time
import uuid
from dataclasses import dataclass

from google.protobuf.message import Message
from remuda.store.v1 import operation_pb2 as records
from remuda_core.errors import Reason, RemudaError, invalid_argument
from remuda_core.etcd import ops
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.keys import Keys

KEPT_SECONDS = 24 * 3600
_BUCKET_SECONDS = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a mutating rpc."""

    rpc: str
    """Name of the rpc, for example `CreateFlavor`."""
    principal: str
    request: Message
    request_id: str
    """Canonical UUID, empty when the caller gave none."""
    validate_only: bool

    @classmethod
    def of(cls, rpc: str, request: Message, *, principal: str) -> "Call":
        """Raises RemudaError INVALID_ARGUMENT when request_id is no UUID."""
        # Fields of a later version, or of none: nobody has checked them, and they must not get into etcd.
        request.DiscardUnknownFields()
        given = str(getattr(request, "request_id", ""))
        try:
            request_id = str(uuid.UUID(given)) if given else ""
        except ValueError:
            raise invalid_argument("request_id", "is no UUID") from None
        return cls(
            rpc=rpc,
            principal=principal,
            request=request,
            request_id=request_id,
            validate_only=bool(getattr(request, "validate_only", False)),
        )

    def digest(self) -> bytes:
        """SHA-256 over the rpc and what was asked; the id itself does not count."""
        body = type(self.request)()
        body.CopyFrom(self.request)
        if self.request_id:
            body.ClearField("request_id")
        return hashlib.sha256(self.rpc.encode() + b"\0" + body.SerializeToString(deterministic=True)).digest()


@dataclass(frozen=True, slots=True)
class Earlier:
    """What a request id has led to before."""

    record: records.RequestRecord
    revision: int
    """At which it was done."""


class RequestLog:
    def __init__(self, etcd: Etcd, keys: Keys) -> None:
        self._etcd = etcd
        self._keys = keys
        self._bucket = -1
        self._lease = 0

    async def earlier(self, call: Call) -> Earlier | None:
        """Raises RemudaError REQUEST_ID_REUSED when it was for something else."""
        if not call.request_id:
            return None
        kv = await self._etcd.get(self._key(call))
        if kv is None:
            return None
        record = records.RequestRecord.FromString(kv.value)
        if record.digest != call.digest():
            raise RemudaError(
                Reason.REQUEST_ID_REUSED,
                f"request_id {call.request_id} was used for another request",
                metadata={"request_id": call.request_id},
            )
        return Earlier(record, kv.mod_revision)

    async def writes(
        self, call: Call, *, operation_id: str, response: Message | None
    ) -> tuple[list[ops.Compare], list[ops.Op]]:
        """What the transaction compares and puts besides its own; nothing without a request id."""
        if not call.request_id:
            return [], []
        record = records.RequestRecord(digest=call.digest(), operation_id=operation_id)
        if response is not None:
            record.response.Pack(response, deterministic=True)
        key = self._key(call)
        put = ops.put(key, record.SerializeToString(deterministic=True), lease=await self._hour_lease())
        return [ops.absent(key)], [put]

    def forget_lease(self) -> None:
        """etcd says that it is gone: it was revoked by hand, or etcd was restored from a backup."""
        self._bucket = -1

    async def _hour_lease(self) -> int:
        now = time.time()
        bucket = int(now // _BUCKET_SECONDS)
        if bucket != self._bucket:
            # Every replica derives the same id and finds the lease that another one has made.
            text = f"{self._keys.prefix}requests/{bucket}"
            lease_id = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2 | 1
            ttl = int((bucket + 1) * _BUCKET_SECONDS - now) + KEPT_SECONDS
            self._lease, _ = await self._etcd.grant_lease(ttl, lease_id=lease_id)
            self._bucket = bucket
        return self._lease

    def _key(self, call: Call) -> str:
        return self._keys.request(call.principal, call.request_id)
