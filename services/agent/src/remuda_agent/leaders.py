"""The newest leader this host has acknowledged, kept with fsync.

The protocol is the Fence handshake of the design: a new leader moves an operation only after every host that
the operation names has acknowledged it here, so an order of the leader before, delayed however long, can do
nothing any more; also after this agent was restarted.
"""

import os
from pathlib import Path

from remuda.agent.v1.common_pb2 import LeaderRef
from remuda_core.errors import Reason, RemudaError


class LeaderGuard:
    """Raises STALE_LEADER for leaders older than the newest acknowledged one."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "leader"
        self._newest = self._read()

    @property
    def newest(self) -> LeaderRef | None:
        return self._newest

    def acknowledge(self, leader: LeaderRef) -> None:
        """Makes `leader` the newest, durably, before it returns. Equal to the newest: nothing to do.

        A changed cluster id means that etcd was restored or replaced: its epochs say nothing about ours, so
        it is refused until an operator removes the file (`remuda-agent --forget-leader`).
        """
        self.check(leader)
        if self._newest is None or leader.epoch > self._newest.epoch:
            self._write(leader)
            self._newest = LeaderRef(cluster_id=leader.cluster_id, epoch=leader.epoch)

    def check(self, leader: LeaderRef) -> None:
        newest = self._newest
        if newest is None:
            return
        if leader.cluster_id != newest.cluster_id:
            raise RemudaError(
                Reason.STALE_LEADER,
                f"order from etcd cluster {leader.cluster_id:x}, this host obeys {newest.cluster_id:x}",
                metadata={"cluster_id": f"{newest.cluster_id:x}"},
            )
        if leader.epoch < newest.epoch:
            raise RemudaError(
                Reason.STALE_LEADER,
                f"leader epoch {leader.epoch} is older than {newest.epoch}, which this host has acknowledged",
                metadata={"epoch": str(newest.epoch)},
            )

    def forget(self) -> None:
        """For an operator, after etcd was restored from a backup."""
        self._path.unlink(missing_ok=True)
        self._newest = None

    def _read(self) -> LeaderRef | None:
        try:
            return LeaderRef.FromString(self._path.read_bytes())
        except FileNotFoundError:
            return None

    def _write(self, leader: LeaderRef) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".new")
        with temporary.open("wb") as file:
            file.write(leader.SerializeToString())
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self._path)
        directory = os.open(self._path.parent, os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
