"""Pools and their identity."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from remuda_agent.disks.pools import UID_FILE, Pool, Pools, pool_uid
from remuda_core.errors import Reason, RemudaError


def test_a_pools_uid_is_drawn_once_and_kept(tmp_path: Path) -> None:
    first = pool_uid(Pool(name="a", path=tmp_path))
    assert str(uuid.UUID(first)) == first
    assert pool_uid(Pool(name="b", path=tmp_path, shared=True)) == first
    assert [path.name for path in tmp_path.iterdir()] == [UID_FILE]


def test_hosts_that_draw_at_the_same_time_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as threads:
        drawn = set(threads.map(lambda _: pool_uid(Pool(name="a", path=tmp_path)), range(64)))
    assert len(drawn) == 1


def test_a_pool_that_is_not_mounted_is_not_filled_in(tmp_path: Path) -> None:
    missing = tmp_path / "not-mounted"
    pools = Pools([Pool(name="local", path=tmp_path), Pool(name="nfs", path=missing, shared=True)])
    with pytest.raises(FileNotFoundError, match="nfs"):
        pools.prepare()
    assert not missing.exists()
    assert [pool.name for pool in pools.describe()] == ["local"]


def test_a_pool_that_is_no_longer_mounted_gets_no_uid_by_being_looked_at(tmp_path: Path) -> None:
    pools = Pools([Pool(name="nfs", path=tmp_path, shared=True)])
    pools.prepare()
    (tmp_path / UID_FILE).unlink()
    assert pools.describe() == []
    assert not (tmp_path / UID_FILE).exists()


def test_size_and_free_space_are_those_of_the_file_system(tmp_path: Path) -> None:
    pools = Pools([Pool(name="local", path=tmp_path, shared=True)])
    pools.prepare()
    (described,) = pools.describe()
    assert described.shared
    assert described.uid == pool_uid(pools.get("local"))
    assert 0 < described.available_bytes <= described.capacity_bytes
    assert pools.get("local").instances.is_dir()
    assert pools.get("local").bases.is_dir()


def test_an_unknown_pool_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RemudaError, match=r"ssd.*local") as refused:
        Pools([Pool(name="local", path=tmp_path)]).get("ssd")
    assert refused.value.reason is Reason.STEP_FAILED
