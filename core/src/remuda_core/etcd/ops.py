"""Builders for the conditions and operations of a transaction.

await etcd.txn(compare=[mod_is(key, seen.mod_revision)], success=[put(key, new)], failure=[get(key)])
"""

from typing import TypeAlias

from remuda.etcd.v1 import etcd_pb2 as pb

Compare: TypeAlias = pb.Compare
Op: TypeAlias = pb.RequestOp

MAX_OPS = 128
"""etcd's default --max-txn-ops: more operations in one branch are refused."""


def prefix_end(prefix: str) -> bytes:
    """First key after all that begin with `prefix`; "\\0" (= no end) for the empty prefix."""
    end = bytearray(prefix.encode())
    while end and end[-1] == 0xFF:
        end.pop()
    if not end:
        return b"\0"
    end[-1] += 1
    return bytes(end)


def absent(key: str) -> Compare:
    """The key does not exist."""
    return create_is(key, 0)


def absent_prefix(prefix: str) -> Compare:
    """No key begins with `prefix`, which must not be empty."""
    if not prefix:
        raise ValueError("absent_prefix of the empty prefix would compare everything in etcd")
    compare = create_is(prefix, 0)
    # etcd compares every key of the range, and a range without keys as one key that does not exist.
    compare.range_end = prefix_end(prefix)
    return compare


def exists(key: str) -> Compare:
    return pb.Compare(
        key=key.encode(),
        target=pb.Compare.COMPARE_TARGET_CREATE,
        result=pb.Compare.COMPARE_RESULT_GREATER,
        create_revision=0,
    )


def create_is(key: str, revision: int) -> Compare:
    """The key is the one created at `revision` (0: it does not exist), whatever its value has become."""
    return pb.Compare(
        key=key.encode(),
        target=pb.Compare.COMPARE_TARGET_CREATE,
        result=pb.Compare.COMPARE_RESULT_EQUAL,
        create_revision=revision,
    )


def mod_is(key: str, revision: int) -> Compare:
    """Nobody has changed the key since `revision` (0: it does not exist)."""
    return pb.Compare(
        key=key.encode(),
        target=pb.Compare.COMPARE_TARGET_MOD,
        result=pb.Compare.COMPARE_RESULT_EQUAL,
        mod_revision=revision,
    )


def value_is(key: str, value: bytes) -> Compare:
    """The key exists with exactly this value. (A key that does not exist never compares equal.)"""
    return pb.Compare(
        key=key.encode(),
        target=pb.Compare.COMPARE_TARGET_VALUE,
        result=pb.Compare.COMPARE_RESULT_EQUAL,
        value=value,
    )


def put(key: str, value: bytes, *, lease: int = 0) -> Op:
    return pb.RequestOp(request_put=pb.PutRequest(key=key.encode(), value=value, lease=lease))


def delete(key: str) -> Op:
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key.encode()))


def delete_prefix(prefix: str) -> Op:
    """Delete every key that begins with `prefix`, which must not be empty."""
    if not prefix:
        raise ValueError("delete_prefix of the empty prefix would remove everything in etcd")
    return pb.RequestOp(
        request_delete_range=pb.DeleteRangeRequest(key=prefix.encode(), range_end=prefix_end(prefix))
    )


def get(key: str) -> Op:
    return pb.RequestOp(request_range=pb.RangeRequest(key=key.encode()))


def get_prefix(prefix: str, *, limit: int = 0) -> Op:
    """`limit`: largest number of keys, 0 for all."""
    return pb.RequestOp(request_range=prefix_range(prefix, limit=limit))


def prefix_range(prefix: str, *, limit: int = 0, revision: int = 0, start_after: str = "") -> pb.RangeRequest:
    """The range request for a prefix, in key order, from the first key after `start_after`."""
    start = start_after.encode() + b"\0" if start_after else prefix.encode() or b"\0"
    return pb.RangeRequest(key=start, range_end=prefix_end(prefix), limit=limit, revision=revision)
