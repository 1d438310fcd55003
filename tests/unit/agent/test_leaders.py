"""A host obeys the newest leader it has acknowledged, also after a restart of its agent."""

from pathlib import Path

import pytest
from remuda.agent.v1.common_pb2 import LeaderRef
from remuda_agent.leaders import LeaderGuard
from remuda_core.errors import Reason, RemudaError


def leader(epoch: int, cluster: int = 7) -> LeaderRef:
    return LeaderRef(cluster_id=cluster, epoch=epoch)


def test_the_first_leader_is_taken_whoever_it_is(tmp_path: Path) -> None:
    guard = LeaderGuard(tmp_path / "state")
    guard.acknowledge(leader(5))
    assert guard.newest == leader(5)


def test_an_older_leader_is_refused_and_told_which_epoch_is_newer(tmp_path: Path) -> None:
    guard = LeaderGuard(tmp_path)
    guard.acknowledge(leader(5))
    with pytest.raises(RemudaError) as refused:
        guard.acknowledge(leader(4))
    assert refused.value.reason is Reason.STALE_LEADER
    assert refused.value.metadata["epoch"] == "5"
    assert guard.newest == leader(5)


def test_an_older_leader_is_refused_also_by_a_restarted_agent(tmp_path: Path) -> None:
    LeaderGuard(tmp_path).acknowledge(leader(5))
    with pytest.raises(RemudaError):
        LeaderGuard(tmp_path).check(leader(4))
    LeaderGuard(tmp_path).check(leader(5))


def test_a_leader_of_another_etcd_cluster_is_refused_until_an_operator_says_so(tmp_path: Path) -> None:
    guard = LeaderGuard(tmp_path)
    guard.acknowledge(leader(5))
    with pytest.raises(RemudaError):
        guard.acknowledge(leader(9, cluster=8))
    guard.forget()
    guard.acknowledge(leader(1, cluster=8))
    assert LeaderGuard(tmp_path).newest == leader(1, cluster=8)


def test_a_torn_write_leaves_the_acknowledged_leader_in_force(tmp_path: Path) -> None:
    LeaderGuard(tmp_path).acknowledge(leader(5))
    (tmp_path / "leader.new").write_bytes(b"\x08")
    assert LeaderGuard(tmp_path).newest == leader(5)
