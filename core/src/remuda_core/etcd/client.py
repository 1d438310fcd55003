"""The etcd client: typed calls over one channel to all members.

    async with Etcd.open(EtcdConfig(endpoints=("127.0.0.1:2379",))) as etcd:
        seen = await etcd.get(key)

Keys are `str` (UTF-8 on the wire), values `bytes`. Reads are linearizable and are sent again until the
deadline; a write whose answer is lost raises `OutcomeUnknown` and is never sent again, unless a `witness`
makes that safe. Every error is an `EtcdError` (errors.py). Why this client exists: docs/adr/0001.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from remuda.etcd.v1 import etcd_pb2 as pb

from remuda_core.etcd import ops, wire
from remuda_core.etcd.config import EtcdConfig
from remuda_core.etcd.errors import EtcdError, InvalidRequest, OutcomeUnknown, Unavailable
from remuda_core.etcd.model import (
    KeyValue,
    RangeResult,
    Status,
    TxnResult,
    key_value,
    range_result,
    txn_result,
)
from remuda_core.etcd.transport import Transport
from remuda_core.etcd.watch import Watch

__all__ = ["Etcd", "EtcdConfig"]

_SETTLE_PAUSE_SECONDS = 0.1
# Asking again is harmless here; the usual reason for silence is a raft election of one or two seconds.
_WITNESSED_ATTEMPT_SECONDS = 2.0


class Etcd:
    """Use within the event loop that opened it."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @classmethod
    @asynccontextmanager
    async def open(cls, config: EtcdConfig) -> AsyncIterator["Etcd"]:
        """Does not wait for etcd: a service may start before it. The first call connects."""
        transport = Transport(config)
        try:
            yield cls(transport)
        finally:
            await transport.close()

    @property
    def config(self) -> EtcdConfig:
        return self._transport.config

    @property
    def transport(self) -> Transport:
        """For the other modules of this package."""
        return self._transport

    # --- reading ---

    async def get(self, key: str, *, revision: int = 0) -> KeyValue | None:
        """`revision`: read the past (raises Compacted when it is gone), 0 for now."""
        response = await self._transport.call(
            wire.RANGE, pb.RangeRequest(key=key.encode(), revision=revision)
        )
        return key_value(response.kvs[0]) if response.kvs else None

    async def range_key(self, key: str) -> RangeResult:
        """One key, or none, together with the revision of the store: where a watch has to start."""
        return range_result(await self._transport.call(wire.RANGE, pb.RangeRequest(key=key.encode())))

    async def range_prefix(
        self, prefix: str, *, limit: int = 0, revision: int = 0, start_after: str = ""
    ) -> RangeResult:
        """One request for the keys under `prefix`, in order; use `pages` where they may be many."""
        request = ops.prefix_range(prefix, limit=limit, revision=revision, start_after=start_after)
        return range_result(await self._transport.call(wire.RANGE, request), revision=revision)

    async def pages(
        self, prefix: str, *, page_size: int = 1000, revision: int = 0, start_after: str = ""
    ) -> AsyncIterator[RangeResult]:
        """The keys under `prefix` in pages that all show one revision: the first page's, or `revision`.

        At least one page comes, which may be empty. Raises Compacted when that revision is compacted away
        between two pages.
        """
        while True:
            page = await self.range_prefix(
                prefix, limit=page_size, revision=revision, start_after=start_after
            )
            revision = page.revision
            yield page
            if not page.more:
                return
            start_after = page.kvs[-1].key

    async def count(self, prefix: str, *, revision: int = 0) -> int:
        request = ops.prefix_range(prefix, revision=revision)
        request.count_only = True
        return (await self._transport.call(wire.RANGE, request)).count

    async def newest(self, prefix: str) -> tuple[int, int, int]:
        """(revision now, number of keys under `prefix`, largest mod_revision among them or 0).

        Costs etcd a pass over the prefix, not only the one key that it sends.
        """
        request = ops.prefix_range(prefix, limit=1)
        request.keys_only = True
        request.sort_order = pb.RangeRequest.SORT_ORDER_DESCEND
        request.sort_target = pb.RangeRequest.SORT_TARGET_MOD
        response = await self._transport.call(wire.RANGE, request)
        newest = response.kvs[0].mod_revision if response.kvs else 0
        return response.header.revision, response.count, newest

    async def status(self) -> Status:
        """What one of the members says about itself."""
        response = await self._transport.call(wire.STATUS, pb.StatusRequest())
        return Status(
            version=response.version,
            cluster_id=response.header.cluster_id,
            member_id=response.header.member_id,
            leader_id=response.leader,
            revision=response.header.revision,
            db_size_bytes=response.db_size,
            db_size_in_use_bytes=response.db_size_in_use,
            errors=tuple(response.errors),
        )

    # --- writing ---

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Returns the revision. Unconditional: a txn with a comparison is nearly always what is wanted."""
        request = pb.PutRequest(key=key.encode(), value=value, lease=lease)
        return (await self._transport.call(wire.PUT, request)).header.revision

    async def delete(self, key: str) -> bool:
        """Whether the key existed."""
        request = pb.DeleteRangeRequest(key=key.encode())
        return (await self._transport.call(wire.DELETE_RANGE, request)).deleted > 0

    async def delete_prefix(self, prefix: str) -> int:
        """Returns how many keys were deleted, all in one revision."""
        request = ops.delete_prefix(prefix).request_delete_range
        return (await self._transport.call(wire.DELETE_RANGE, request)).deleted

    async def txn(
        self,
        *,
        compare: Sequence[ops.Compare] = (),
        success: Sequence[ops.Op] = (),
        failure: Sequence[ops.Op] = (),
        witness: str | None = None,
        timeout: float | None = None,
    ) -> TxnResult:
        """All of `compare` hold: apply `success`, otherwise `failure`, in one revision.

        `witness` names a key that `compare` pins (mod_is, create_is or absent) and `success` puts. It makes
        a lost answer harmless: the transaction is sent again, since it can be applied once only, and when it
        no longer fits, the witness tells whether that is because the first one was applied. Raises
        OutcomeUnknown when that cannot be told before `timeout` (seconds): no answer, or somebody has
        changed the witness since. A result that was found this way carries no responses. The value put to
        the witness must tell this write from another's: a record with an id, an epoch or a time does.
        """
        request = pb.TxnRequest(compare=compare, success=success, failure=failure)
        if witness is None:
            return txn_result(await self._transport.call(wire.TXN, request, timeout=timeout))
        written = witness_value(request, witness)
        limit = self.config.timeout_seconds if timeout is None else timeout
        # An attempt gets a part of the time, so that there is some left to ask again.
        deadline, attempt = time.monotonic() + limit, min(limit / 3, _WITNESSED_ATTEMPT_SECONDS)
        try:
            return txn_result(await self._transport.call(wire.TXN, request, timeout=attempt))
        except OutcomeUnknown as unknown:
            return await self._settle(request, witness, written, deadline, attempt, unknown)

    async def _settle(
        self,
        request: pb.TxnRequest,
        witness: str,
        written: bytes,
        deadline: float,
        attempt: float,
        unknown: OutcomeUnknown,
    ) -> TxnResult:
        again = pb.TxnRequest()
        again.CopyFrom(request)
        again.failure.append(ops.get(witness))
        while (remaining := deadline - time.monotonic()) > 0:
            try:
                response = await self._transport.call(wire.TXN, again, timeout=min(attempt, remaining))
            except (OutcomeUnknown, Unavailable):
                await asyncio.sleep(_SETTLE_PAUSE_SECONDS)
                continue
            result = txn_result(response)
            if result.succeeded:
                return result
            seen = result.responses[-1].kv
            if _still_pinned(request, witness, seen):
                # Some other comparison failed, and nobody has touched the witness: nothing was applied.
                return replace(result, responses=result.responses[:-1])
            if seen is not None and seen.value == written:
                return replace(result, succeeded=True, revision=seen.mod_revision, responses=())
            raise OutcomeUnknown(f"{witness} was changed by somebody else meanwhile") from unknown
        raise unknown

    async def compact(self, revision: int, *, physical: bool = False) -> None:
        """Drop the history before `revision`. `physical`: answer only when the space is free."""
        await self._transport.call(wire.COMPACT, pb.CompactionRequest(revision=revision, physical=physical))

    # --- leases ---

    async def grant_lease(self, ttl_seconds: int, *, lease_id: int = 0) -> tuple[int, int]:
        """Returns (lease id, granted TTL in seconds; etcd raises very short ones).

        The id is chosen here (unless given), so that a grant whose answer was lost is asked for again under
        the same id: no lease is leaked.
        """
        chosen = lease_id or random.SystemRandom().randrange(1, 1 << 62)
        request = pb.LeaseGrantRequest(id=chosen, ttl=ttl_seconds)
        try:
            response = await self._transport.call(wire.LEASE_GRANT, request)
        except InvalidRequest as error:
            if "lease already exists" not in str(error):
                raise
            return chosen, ttl_seconds
        return response.id, response.ttl

    async def revoke_lease(self, lease_id: int, *, timeout: float | None = None) -> None:
        """Ends the lease and deletes its keys, in one revision. One that is gone already is no error."""
        try:
            await self._transport.call(wire.LEASE_REVOKE, pb.LeaseRevokeRequest(id=lease_id), timeout=timeout)
        except EtcdError as error:
            if "requested lease not found" not in str(error):
                raise

    async def lease_ttl(self, lease_id: int) -> int:
        """Seconds that the lease has left, -1 when it is gone."""
        response = await self._transport.call(wire.LEASE_TIME_TO_LIVE, pb.LeaseTimeToLiveRequest(id=lease_id))
        return response.ttl

    async def leases(self) -> frozenset[int]:
        """Ids of all leases, for tests and clean-up."""
        response = await self._transport.call(wire.LEASE_LEASES, pb.LeaseLeasesRequest())
        return frozenset(lease.id for lease in response.leases)

    # --- watching ---

    def watch(self, key: str, *, start_revision: int = 0) -> Watch:
        """Changes of one key, see `watch_prefix`."""
        return Watch(self._transport, key=key.encode(), range_end=b"", start_revision=start_revision)

    def watch_prefix(self, prefix: str, *, start_revision: int = 0) -> Watch:
        """Changes of the keys under `prefix`, from `start_revision` on (0: from now).

        async with etcd.watch_prefix(prefix, start_revision=page.revision + 1) as watch:
            async for batch in watch: ...
        """
        return Watch(
            self._transport,
            key=prefix.encode() or b"\0",
            range_end=ops.prefix_end(prefix),
            start_revision=start_revision,
        )


def witness_value(request: pb.TxnRequest, witness: str) -> bytes:
    """What the transaction writes to the witness. Raises ValueError when the key cannot serve as one."""
    key = witness.encode()
    if not any(_pins(compare, key) for compare in request.compare):
        raise ValueError(f"no comparison pins the witness {witness}: the transaction could be applied twice")
    for op in request.success:
        if op.WhichOneof("request") == "request_put" and op.request_put.key == key:
            return op.request_put.value
    raise ValueError(f"success does not put the witness {witness}")


def _pins(compare: pb.Compare, key: bytes) -> bool:
    """Whether the comparison stops holding once the key has been put."""
    if compare.key != key or compare.range_end or compare.result != pb.Compare.COMPARE_RESULT_EQUAL:
        return False
    return compare.WhichOneof("target_union") == "mod_revision" or (
        compare.WhichOneof("target_union") == "create_revision" and compare.create_revision == 0
    )


def _still_pinned(request: pb.TxnRequest, witness: str, seen: KeyValue | None) -> bool:
    pin = next(compare for compare in request.compare if _pins(compare, witness.encode()))
    return (seen.mod_revision if seen else 0) == max(pin.mod_revision, pin.create_revision)
