"""One leader, and writes that only the leader can make.

The leader key stands under a lease. Its create_revision is the **leader epoch**: it rises with every
election, and every transaction of the leader compares it, so that etcd itself refuses whatever a leader
writes that has lost the key, however late it wakes up. Clocks are used only to stop early (`safe`), never to
decide who leads.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Self

from remuda_core.etcd import ops
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.errors import (
    Compacted,
    EtcdError,
    NotLeader,
    OutcomeUnknown,
    Unavailable,
)
from remuda_core.etcd.lease import LeaseKeeper
from remuda_core.etcd.model import EventKind, KeyValue, TxnResult
from remuda_core.etcd.transport import backoff

_log = logging.getLogger(__name__)

# Part of the TTL that must be left for new work to be started.
_SAFE_MARGIN = 0.2
_RETRY_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderInfo:
    epoch: int
    candidate: bytes
    """What the leader gave as its candidate: who it is and where."""


class Leadership:
    """One term. Ends for good: by `resign`, or when `lost` is set."""

    def __init__(self, etcd: Etcd, key: str, keeper: LeaseKeeper, *, epoch: int, cluster_id: int) -> None:
        """Made by `Election.campaign`."""
        self.epoch = epoch
        self.cluster_id = cluster_id
        """Of etcd: epochs of two clusters cannot be compared."""
        self.lost = asyncio.Event()
        """Set when this process is no longer the leader, whatever the reason."""
        self.lost_reason = ""
        self._etcd = etcd
        self._key = key
        self._keeper = keeper
        self._observer = asyncio.create_task(self._observe(), name=f"leadership {epoch}")

    @property
    def valid_until(self) -> float:
        """On time.monotonic(): nobody else can be leader before, unless the key is taken away by force."""
        return 0.0 if self.lost.is_set() else self._keeper.valid_until

    @property
    def safe(self) -> bool:
        """Whether new work may be started. Advisory: what protects the records is `txn`."""
        margin = self._keeper.ttl_seconds * _SAFE_MARGIN
        return not self._keeper.lost and time.monotonic() < self.valid_until - margin

    async def txn(
        self,
        *,
        compare: Sequence[ops.Compare] = (),
        success: Sequence[ops.Op] = (),
        failure: Sequence[ops.Op] = (),
        witness: str | None = None,
        timeout: float | None = None,
    ) -> TxnResult:
        """`Etcd.txn` that etcd applies only while this term lasts; `succeeded` is about the caller's part.

        Raises NotLeader when the term is over; `outcome_unknown` on it says that this transaction may have
        been applied before. Raises OutcomeUnknown when the answer was lost and the term goes on: the caller
        re-reads its keys (or gives a `witness`).
        """
        if self.lost.is_set():
            raise NotLeader(f"epoch {self.epoch} is over: {self.lost_reason}")
        try:
            result = await self._etcd.txn(
                compare=[ops.create_is(self._key, self.epoch), *compare],
                success=success,
                failure=[ops.get(self._key), *failure],
                witness=witness,
                timeout=timeout,
            )
        except OutcomeUnknown as unknown:
            await self._reread_term(unknown)
            raise
        if not result.succeeded:
            self._check_term(result.responses[0].kv, outcome_unknown=False)
            return TxnResult(
                succeeded=False,
                revision=result.revision,
                responses=result.responses[1:],
                cluster_id=result.cluster_id,
            )
        if len(result.responses) != len(success):
            # Settled through the witness, which a successor may have written in the same words.
            await self._reread_term(OutcomeUnknown("the answer was lost, and then the leader key unreadable"))
        return result

    async def _reread_term(self, unknown: OutcomeUnknown) -> None:
        try:
            seen = await self._etcd.get(self._key)
        except EtcdError:
            raise unknown from None
        self._check_term(seen, outcome_unknown=True)

    def _check_term(self, seen: KeyValue | None, *, outcome_unknown: bool) -> None:
        if seen is None or seen.create_revision != self.epoch:
            reason = "the leader key is gone" if seen is None else f"epoch {seen.create_revision} has begun"
            self.end(reason)
            raise NotLeader(f"epoch {self.epoch} is over: {reason}", outcome_unknown=outcome_unknown)

    async def resign(self) -> None:
        """End the term; the next leader need not wait for the TTL. Harmless when it is over already."""
        self.end("resigned")
        await _retire(self._etcd, self._keeper)

    def end(self, reason: str) -> None:
        """Note that the term is over. Used by this module."""
        if not self.lost.is_set():
            self.lost_reason = reason
            self.lost.set()
            _log.info("leadership with epoch %d is over: %s", self.epoch, reason)
        # Not kept alive any longer: if it still exists, its end lets the next leader in.
        self._keeper.stop()
        self._observer.cancel()

    async def _observe(self) -> None:
        """Notice it at once when the key is deleted or overwritten by force."""
        async with self._etcd.watch(self._key, start_revision=self.epoch + 1) as watch:
            try:
                async for batch in watch:
                    for event in batch.events:
                        if event.kind is EventKind.DELETE:
                            self.end("the leader key was deleted")
                        elif event.kv.lease != self._keeper.lease_id:
                            self.end("the leader key was overwritten")
            except EtcdError as error:
                # Compacted, or no rights to watch: the lease and the fence go on protecting the term.
                _log.warning("cannot watch the leader key: %s", error)


class Election:
    """One candidate of one election."""

    def __init__(self, etcd: Etcd, key: str, candidate: bytes, ttl_seconds: int) -> None:
        """`candidate` is what others read from the key: who this is and where it listens.

        etcd raises a `ttl_seconds` below its floor, about 1.5 of its election timeouts (2 s by default).
        """
        self._etcd = etcd
        self._key = key
        self._candidate = candidate
        self._ttl_seconds = ttl_seconds
        self._leadership: Leadership | None = None

    async def campaign(self) -> Leadership:
        """Wait until this candidate leads, over any trouble of etcd's. One lease serves all attempts.

        Cancelling it gives the lease back. Raises PermissionDenied and AuthenticationFailed.
        """
        if self._leadership is not None and not self._leadership.lost.is_set():
            raise RuntimeError("this candidate leads already")
        pauses = backoff()
        while True:
            try:
                async with _Candidacy(self._etcd, self._ttl_seconds) as candidacy:
                    while not candidacy.lost.is_set():
                        self._leadership = await self._attempt(candidacy)
                        if self._leadership is not None:
                            return self._leadership
            except Unavailable as error:
                _log.info("no lease to campaign for %s: %s", self._key, error)
            await asyncio.sleep(next(pauses))

    async def resign(self) -> None:
        """End the current term, if there is one."""
        leadership, self._leadership = self._leadership, None
        if leadership is not None:
            await leadership.resign()

    def observe(self) -> AsyncIterator[LeaderInfo | None]:
        return observe(self._etcd, self._key)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.resign()

    async def _attempt(self, candidacy: "_Candidacy") -> Leadership | None:
        """Take the key if it is free; otherwise wait until that may have changed."""
        keeper = candidacy.keeper
        try:
            result = await self._etcd.txn(
                compare=[ops.absent(self._key)],
                success=[ops.put(self._key, self._candidate, lease=keeper.lease_id)],
                failure=[ops.get(self._key)],
            )
        except (OutcomeUnknown, Unavailable) as error:
            # The next attempt tells: a key under our lease is ours.
            _log.info("campaign for %s: %s", self._key, error)
            await asyncio.sleep(_RETRY_SECONDS)
            return None
        holder = None if result.succeeded else result.responses[0].kv
        if result.succeeded or (holder is not None and holder.lease == keeper.lease_id):
            epoch = result.revision if holder is None else holder.create_revision
            return candidacy.elected(
                Leadership(self._etcd, self._key, keeper, epoch=epoch, cluster_id=result.cluster_id)
            )
        if holder is not None and holder.lease == 0:
            await self._remove_forged(holder)
        else:
            await self._wait_vacant(result.revision + 1, candidacy)
        return None

    async def _remove_forged(self, holder: KeyValue) -> None:
        """A leader key without a lease was put by hand, and would keep everybody from leading for ever."""
        _log.error("removing the leader key %s: it has no lease", self._key)
        with contextlib.suppress(OutcomeUnknown, Unavailable):
            await self._etcd.txn(
                compare=[ops.mod_is(self._key, holder.mod_revision)], success=[ops.delete(self._key)]
            )

    async def _wait_vacant(self, start_revision: int, candidacy: "_Candidacy") -> None:
        async def vacant() -> None:
            # Compacted: perhaps it was deleted, the next attempt tells.
            with contextlib.suppress(Compacted):
                async with self._etcd.watch(self._key, start_revision=start_revision) as watch:
                    async for batch in watch:
                        if any(event.kind is EventKind.DELETE for event in batch.events):
                            return

        await _first_of(vacant(), candidacy.lost.wait())


async def observe(etcd: Etcd, key: str) -> AsyncIterator[LeaderInfo | None]:
    """The leader now, and then every change of it; None while there is none.

    Goes on over any trouble of etcd's. Raises PermissionDenied, AuthenticationFailed, and Unavailable once
    the client is closed.
    """
    told, last = False, None
    pauses = backoff()
    while True:
        try:
            page = await etcd.range_key(key)
            present = _info(page.kvs[0] if page.kvs else None)
            if not told or present != last:
                told, last = True, present
                yield present
            async with etcd.watch(key, start_revision=page.revision + 1) as watch:
                async for batch in watch:
                    for event in batch.events:
                        last = None if event.kind is EventKind.DELETE else _info(event.kv)
                        yield last
        except (Compacted, Unavailable) as error:
            if etcd.transport.closed:
                raise
            _log.info("observing %s: %s", key, error)
        await asyncio.sleep(next(pauses))


class _Candidacy:
    """A lease and its keeper, for as long as one candidate tries; given back unless it was elected."""

    def __init__(self, etcd: Etcd, ttl_seconds: int) -> None:
        self.lost = asyncio.Event()
        self._etcd = etcd
        self._ttl_seconds = ttl_seconds
        self._keeper: LeaseKeeper | None = None
        self._leadership: Leadership | None = None

    @property
    def keeper(self) -> LeaseKeeper:
        assert self._keeper is not None
        return self._keeper

    async def __aenter__(self) -> "_Candidacy":
        loop = asyncio.get_running_loop()

        def on_lost(reason: str) -> None:
            # RuntimeError: the loop is closed, and with it everybody who could care.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._lose, reason)

        granted_at = time.monotonic()
        lease_id, ttl_seconds = await self._etcd.grant_lease(self._ttl_seconds)
        self._keeper = LeaseKeeper(
            self._etcd.config,
            lease_id=lease_id,
            ttl_seconds=ttl_seconds,
            granted_at=granted_at,
            on_lost=on_lost,
            token=lambda: self._etcd.transport.token,
        )
        self._keeper.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._leadership is None:
            await _retire(self._etcd, self.keeper)

    def elected(self, leadership: Leadership) -> Leadership:
        self._leadership = leadership
        if self.lost.is_set():
            leadership.end("the lease was lost")
        return leadership

    def _lose(self, reason: str) -> None:
        self.lost.set()
        if self._leadership is not None:
            self._leadership.end(f"the lease was lost: {reason}")


async def _retire(etcd: Etcd, keeper: LeaseKeeper) -> None:
    """Stop the keep-alive and give the lease back, which deletes its keys. At worst it ends by its TTL."""
    keeper.stop()
    try:
        await etcd.revoke_lease(keeper.lease_id, timeout=1.0)
    except EtcdError as error:
        _log.info("lease %x is left to its TTL: %s", keeper.lease_id, error)
    await asyncio.to_thread(keeper.join, 1.0)


async def _first_of(*coroutines: Coroutine[Any, Any, object]) -> None:
    """Returns when the first one is done, with its exception if it failed; the others are cancelled."""
    tasks = {asyncio.create_task(coroutine) for coroutine in coroutines}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _info(kv: KeyValue | None) -> LeaderInfo | None:
    return None if kv is None else LeaderInfo(epoch=kv.create_revision, candidate=kv.value)
