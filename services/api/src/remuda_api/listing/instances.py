"""Views of instances: what the owner owns, joined with what the leader knows and with who holds it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import islice

from remuda.etcd.v1 import etcd_pb2
from remuda.store.v1 import instance_pb2 as records
from remuda_core.etcd.cache import Entry, Snapshot
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.keys import Keys
from remuda_core.etcd.ops import MAX_OPS
from remuda_core.ids import InstanceId

from remuda_api.listing.pages import BREATH, View
from remuda_api.store.caches import Caches, entry_of


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRow:
    entry: Entry[records.InstanceRecord]
    status: records.InstanceStatus | None
    claim: records.Claim | None

    @property
    def key(self) -> str:
        return self.entry.key


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSnapshot:
    """Three snapshots taken together. Their watches may be some milliseconds apart; which instances there
    are is what `instances` says."""

    keys: Keys
    instances: Snapshot[records.InstanceRecord]
    statuses: Snapshot[records.InstanceStatus]
    claims: Snapshot[records.Claim]

    @classmethod
    def of(cls, caches: Caches) -> "InstanceSnapshot":
        return cls(
            keys=caches.keys,
            instances=caches.instances.snapshot(),
            statuses=caches.statuses.snapshot(),
            claims=caches.claims.snapshot(),
        )

    @property
    def revision(self) -> int:
        return self.instances.revision

    def row(self, entry: Entry[records.InstanceRecord]) -> InstanceRow:
        instance = InstanceId(entry.value.id)
        status = self.statuses.get(self.keys.instance_status(instance))
        claim = self.claims.get(self.keys.claim(instance))
        return InstanceRow(
            entry=entry,
            status=status.value if status is not None else None,
            claim=claim.value if claim is not None else None,
        )

    async def rows(self, prefix: str, start_after: str) -> AsyncIterator[InstanceRow]:
        for number, entry in enumerate(self.instances.items(prefix=prefix, start_after=start_after)):
            if number % BREATH == BREATH - 1:
                await asyncio.sleep(0)
            yield self.row(entry)


class PastInstances:
    """The same from etcd, as it stood at a revision."""

    def __init__(self, etcd: Etcd, keys: Keys, revision: int) -> None:
        self.revision = revision
        self._etcd = etcd
        self._keys = keys

    async def rows(self, prefix: str, start_after: str) -> AsyncIterator[InstanceRow]:
        pages = self._etcd.pages(
            prefix, page_size=MAX_OPS // 2, revision=self.revision, start_after=start_after
        )
        async for page in pages:
            for row in await self._join([entry_of(kv, records.InstanceRecord) for kv in page.kvs]):
                yield row

    async def _join(self, entries: Sequence[Entry[records.InstanceRecord]]) -> list[InstanceRow]:
        if not entries:
            return []
        ids = [InstanceId(entry.value.id) for entry in entries]
        keys = [key for i in ids for key in (self._keys.instance_status(i), self._keys.claim(i))]
        reads = [
            etcd_pb2.RequestOp(request_range=etcd_pb2.RangeRequest(key=key.encode(), revision=self.revision))
            for key in keys
        ]
        found = iter((await self._etcd.txn(success=reads)).responses)
        rows = []
        for entry in entries:
            status, claim = (answer.kv for answer in islice(found, 2))
            rows.append(
                InstanceRow(
                    entry=entry,
                    status=records.InstanceStatus.FromString(status.value) if status else None,
                    claim=records.Claim.FromString(claim.value) if claim else None,
                )
            )
        return rows


class InstanceViews:
    def __init__(self, etcd: Etcd, caches: Caches) -> None:
        self._etcd = etcd
        self._caches = caches

    def present(self) -> View[InstanceRow]:
        return InstanceSnapshot.of(self._caches)

    def past(self, revision: int) -> View[InstanceRow]:
        return PastInstances(self._etcd, self._caches.keys, revision)
