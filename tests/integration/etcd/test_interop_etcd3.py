"""A third-party client reads and writes Remuda's keys: the documented layout is enough.

The client is `etcd3` 0.12.0, see docs/adr/0001-own-etcd-client.md for why Remuda itself does not use it.
"""

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from remuda.store.v1.host_pb2 import HostRecord
from remuda_core.etcd.cache import PrefixCache
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.election import Election
from remuda_core.etcd.keys import Keys
from remuda_core.etcd.ops import mod_is, put
from remuda_core.ids import HostId
from remuda_core.testing.etcd import EtcdServer
from remuda_core.testing.etcd3 import import_etcd3
from remuda_core.testing.waiting import wait_for

# The thread of its watch dies of an exception when the client is closed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture
def etcd3(etcd_server: EtcdServer) -> Iterator[Any]:
    client = import_etcd3().client(host="127.0.0.1", port=etcd_server.client_port, timeout=5)
    yield client
    client.close()


def host(name: str) -> HostRecord:
    return HostRecord(id=str(uuid.uuid4()), display_name=name)


def key_of(prefix: str, record: HostRecord) -> str:
    return Keys(prefix).host(HostId(record.id))


async def in_thread(function: Any, *arguments: Any, **options: Any) -> Any:
    """Its calls block; the event loop must go on meanwhile."""
    return await asyncio.to_thread(function, *arguments, **options)


async def test_it_reads_a_record_that_remuda_wrote(etcd: Etcd, etcd3: Any, etcd_prefix: str) -> None:
    record = host("käse-1")
    revision = await etcd.put(key_of(etcd_prefix, record), record.SerializeToString())
    value, meta = await in_thread(etcd3.get, key_of(etcd_prefix, record))
    assert HostRecord.FromString(value) == record
    assert (meta.key.decode(), meta.mod_revision) == (key_of(etcd_prefix, record), revision)
    listed = await in_thread(lambda: list(etcd3.get_prefix(Keys(etcd_prefix).hosts)))
    assert [HostRecord.FromString(value) for value, _ in listed] == [record]


async def test_remudas_cache_follows_what_it_writes(etcd: Etcd, etcd3: Any, etcd_prefix: str) -> None:
    record = host("one")
    key = key_of(etcd_prefix, record)
    async with (
        PrefixCache(etcd, Keys(etcd_prefix).hosts, lambda kv: HostRecord.FromString(kv.value)) as cache,
        cache.subscribe() as changes,
    ):
        await in_thread(etcd3.put, key, record.SerializeToString())
        change = await asyncio.wait_for(anext(changes), 60)
        assert change.new is not None
        assert change.new.value == record
        await in_thread(etcd3.delete, key)
        assert (await asyncio.wait_for(anext(changes), 60)).new is None


async def test_both_swap_one_record_and_each_notices_the_other(
    etcd: Etcd, etcd3: Any, etcd_prefix: str
) -> None:
    record = host("one")
    key = key_of(etcd_prefix, record)
    revision = await etcd.put(key, record.SerializeToString())

    def cordon(expected_revision: int) -> bool:
        changed = HostRecord(id=record.id, display_name=record.display_name, cordoned=True)
        succeeded, _ = etcd3.transaction(
            compare=[etcd3.transactions.mod(key) == expected_revision],
            success=[etcd3.transactions.put(key, changed.SerializeToString())],
            failure=[],
        )
        return bool(succeeded)

    assert await in_thread(cordon, revision)
    assert not await in_thread(cordon, revision)
    stale = await etcd.txn(compare=[mod_is(key, revision)], success=[put(key, b"")])
    assert not stale.succeeded
    found = await etcd.get(key)
    assert found is not None
    assert HostRecord.FromString(found.value).cordoned
    assert (await etcd.txn(compare=[mod_is(key, found.mod_revision)], success=[put(key, b"")])).succeeded


async def test_it_watches_what_remuda_writes(etcd: Etcd, etcd3: Any, etcd_prefix: str) -> None:
    record = host("one")
    key = key_of(etcd_prefix, record)
    start = await etcd.put(key, record.SerializeToString())
    events, cancel = await in_thread(etcd3.watch_prefix, etcd_prefix, start_revision=start)
    await etcd.delete(key)
    first, second = await in_thread(lambda: (next(events), next(events)))
    await in_thread(cancel)
    assert HostRecord.FromString(first.value) == record
    assert type(second).__name__ == "DeleteEvent"
    assert second.key.decode() == key


async def test_it_sees_who_leads_and_for_how_long(etcd: Etcd, etcd3: Any, etcd_prefix: str) -> None:
    key = Keys(etcd_prefix).leader
    async with Election(etcd, key, b"scheduler-1", 10) as election:
        leadership = await election.campaign()
        value, meta = await in_thread(etcd3.get, key)
        assert (value, meta.create_revision) == (b"scheduler-1", leadership.epoch)
        lease = await in_thread(etcd3.get_lease_info, meta.lease_id)
        assert 0 < lease.TTL <= 10
    assert await in_thread(etcd3.get, key) == (None, None)


async def test_a_key_under_its_lease_vanishes_from_remudas_cache(
    etcd: Etcd, etcd3: Any, etcd_prefix: str
) -> None:
    async with PrefixCache(etcd, etcd_prefix, lambda kv: kv.value) as cache:
        lease = await in_thread(etcd3.lease, 600)
        await in_thread(etcd3.put, etcd_prefix + "k", b"v", lease)
        await wait_for(lambda: len(cache) == 1, timeout=60)
        await in_thread(lease.revoke)
        await wait_for(lambda: len(cache) == 0, timeout=60)
