"""For tests that choose the order of events: etcd's reads, transactions and revisions, in this process.

As much as the image store's garbage collection needs: keys, ranges, comparisons. No leases and no watches: a
test deletes the key whose lease has ended.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from operator import eq, gt, lt

from remuda.etcd.v1 import etcd_pb2 as pb

from remuda_core.etcd import ops
from remuda_core.etcd.model import KeyValue, OpResult, RangeResult, TxnResult

_RESULTS = {
    pb.Compare.COMPARE_RESULT_EQUAL: eq,
    pb.Compare.COMPARE_RESULT_GREATER: gt,
    pb.Compare.COMPARE_RESULT_LESS: lt,
}


async def _at_once(_: str) -> None:
    """No waiting."""


class InMemoryEtcd:
    """Stands in for `Etcd` (its methods of the same names)."""

    def __init__(self, before: Callable[[str], Awaitable[None]] = _at_once) -> None:
        """`before`: awaited before each request takes effect, with its name."""
        self.keys: dict[str, KeyValue] = {}
        self.revision = 1
        self._before = before

    async def get(self, key: str) -> KeyValue | None:
        await self._before("get")
        return self.keys.get(key)

    async def pages(self, prefix: str) -> AsyncIterator[RangeResult]:
        await self._before("range")
        kvs = self._range(prefix.encode(), ops.prefix_end(prefix))
        yield RangeResult(revision=self.revision, kvs=kvs, count=len(kvs), more=False)

    async def count(self, prefix: str) -> int:
        await self._before("count")
        return len(self._range(prefix.encode(), ops.prefix_end(prefix)))

    async def put(self, key: str, value: bytes) -> int:
        return (await self.txn(success=[ops.put(key, value)])).revision

    async def delete(self, key: str) -> bool:
        return (await self.txn(success=[ops.delete(key)])).responses[0].deleted > 0

    async def txn(
        self,
        *,
        compare: Sequence[ops.Compare] = (),
        success: Sequence[ops.Op] = (),
        failure: Sequence[ops.Op] = (),
        witness: str | None = None,
    ) -> TxnResult:
        """`witness` is not needed here: no answer is lost."""
        del witness
        await self._before("txn")
        if max(len(compare), len(success), len(failure)) > ops.MAX_OPS:
            raise ValueError("too many operations in one transaction")
        holds = all(map(self._holds, compare))
        return self._apply(success if holds else failure, holds)

    def _apply(self, operations: Sequence[ops.Op], holds: bool) -> TxnResult:
        revision, responses = self.revision + 1, []
        for op in operations:
            match op.WhichOneof("request"):
                case "request_put":
                    self._put(op.request_put, revision)
                    responses.append(OpResult())
                case "request_delete_range":
                    request = op.request_delete_range
                    gone = self._range(request.key, request.range_end)
                    for kv in gone:
                        del self.keys[kv.key]
                    self.revision = revision if gone else self.revision
                    responses.append(OpResult(deleted=len(gone)))
                case _:
                    asked = op.request_range
                    responses.append(OpResult(kvs=self._range(asked.key, asked.range_end)))
        return TxnResult(succeeded=holds, revision=self.revision, responses=tuple(responses), cluster_id=1)

    def _put(self, request: pb.PutRequest, revision: int) -> None:
        key, old = request.key.decode(), self.keys.get(request.key.decode())
        self.keys[key] = KeyValue(
            key=key,
            value=request.value,
            create_revision=old.create_revision if old else revision,
            mod_revision=revision,
            version=old.version + 1 if old else 1,
            lease=request.lease,
        )
        self.revision = revision

    def _range(self, key: bytes, end: bytes) -> tuple[KeyValue, ...]:
        first, last = key.decode(), end.decode("latin1")
        return tuple(
            kv for name, kv in sorted(self.keys.items()) if name == first or (end and first <= name < last)
        )

    def _holds(self, compare: ops.Compare) -> bool:
        found = self._range(compare.key, compare.range_end)
        if not found:
            # As one key that does not exist; its value equals nothing.
            return compare.WhichOneof("target_union") != "value" and _compare(compare, 0)
        return all(_compare(compare, _target(compare, kv)) for kv in found)


def _target(compare: ops.Compare, kv: KeyValue) -> int | bytes:
    match compare.WhichOneof("target_union"):
        case "mod_revision":
            return kv.mod_revision
        case "create_revision":
            return kv.create_revision
        case "version":
            return kv.version
        case "value":
            return kv.value
    raise ValueError(f"a comparison of {compare.WhichOneof('target_union')}")


def _compare(compare: ops.Compare, present: int | bytes) -> bool:
    wanted = getattr(compare, compare.WhichOneof("target_union") or "mod_revision")
    return bool(_RESULTS[compare.result](present, wanted))
