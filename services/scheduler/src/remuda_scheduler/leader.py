"""Campaigns for the leadership, and runs everything that belongs to a term while it lasts.

    candidate --campaign--> elected --> store, registry, engine run --> lost or stopping --> candidate | end

A term owns its parts by context managers; when the leadership is lost all of them end before the next
campaign begins. What etcd must refuse from the term before is refused by the fence in every transaction.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import structlog
from remuda.agent.v1.common_pb2 import LeaderRef
from remuda.store.v1.operation_pb2 import LeaderRecord
from remuda_core.errors import no_leader, not_leader
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.election import Election, Leadership, observe
from remuda_core.etcd.errors import EtcdError
from remuda_core.etcd.keys import Keys
from remuda_core.ids import HostId
from remuda_core.telemetry.metrics import Metrics

from remuda_scheduler.engine.engine import Engine
from remuda_scheduler.engine.fencing import FencedAgents
from remuda_scheduler.engine.saga import Saga
from remuda_scheduler.engine.services import Services, Timing
from remuda_scheduler.hosts.agents import AgentClients
from remuda_scheduler.hosts.judge import Judge
from remuda_scheduler.hosts.keeper import HostKeeper
from remuda_scheduler.hosts.probes import HostProbes
from remuda_scheduler.hosts.registry import DUPLICATE_WINDOW_SECONDS, HostRegistry
from remuda_scheduler.janitor.service import Janitor
from remuda_scheduler.live.control import ControlHub
from remuda_scheduler.live.hub import ProgressHub
from remuda_scheduler.placement.placer import Placer
from remuda_scheduler.ports import Grants
from remuda_scheduler.preflight.prober import Prober
from remuda_scheduler.preflight.reuse import REUSE_SECONDS, Recent
from remuda_scheduler.preflight.service import Preflight
from remuda_scheduler.reconcile.service import Reconciler
from remuda_scheduler.repairing.service import Repairer
from remuda_scheduler.store import open_store
from remuda_scheduler.telemetry import LeaderMetrics
from remuda_scheduler.term import Term
from remuda_scheduler.turns.queue import Limits
from remuda_scheduler.turns.turns import Turns

_log = structlog.get_logger(__name__)

RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a term is made of, decided once per process."""

    etcd: Etcd
    keys: Keys
    name: str
    endpoint: str
    election_ttl_seconds: int
    unreachable_after: float
    """Seconds of silence."""
    duplicate_window: float = DUPLICATE_WINDOW_SECONDS
    """See HostRegistry."""
    probe_reuse: float = REUSE_SECONDS
    """How long a probe of a host pair may be used again."""
    migration_limits: Limits = field(default_factory=Limits)
    timing: Timing
    open_channel: Callable[[str], grpc.aio.Channel]
    grants: Grants
    sagas: Mapping[str, Saga[Any]]
    metrics: Metrics


class Leader:
    """This scheduler's part in the election. `term()` is what handlers ask."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._leader_metrics = LeaderMetrics(parts.metrics)
        self._term: Term | None = None
        self._seen = LeaderRecord()
        self._seen_epoch = 0

    @property
    def current(self) -> Term | None:
        """The running term, None while this scheduler is a standby."""
        return self._term

    def term(self) -> Term:
        """Raises NOT_LEADER with the leader's endpoint, or NO_LEADER."""
        if self._term is not None and not self._term.leadership.lost.is_set():
            return self._term
        if self._seen.endpoint and self._seen.endpoint != self._parts.endpoint:
            raise not_leader(endpoint=self._seen.endpoint, epoch=self._seen_epoch)
        raise no_leader()

    async def run(self) -> None:
        """Until cancelled; resigns on the way out, so that the next leader need not wait for the TTL."""
        parts = self._parts
        candidate = LeaderRecord(id=parts.name, endpoint=parts.endpoint).SerializeToString()
        observing = asyncio.create_task(self._observe(), name="observe leader")
        try:
            async with Election(
                parts.etcd, parts.keys.leader, candidate, parts.election_ttl_seconds
            ) as election:
                while True:
                    leadership = await election.campaign()
                    _log.info("elected", scheduler=parts.name, epoch=leadership.epoch)
                    try:
                        await self._lead(leadership)
                    except Exception:
                        # A term that broke is given up whole; this process or another begins a clean one.
                        _log.exception("the term broke", epoch=leadership.epoch)
                    finally:
                        await leadership.resign()
                    await asyncio.sleep(RETRY_SECONDS)
        finally:
            observing.cancel()
            await asyncio.gather(observing, return_exceptions=True)

    async def _observe(self) -> None:
        """Who leads, for NOT_LEADER answers."""
        while True:
            try:
                async for info in observe(self._parts.etcd, self._parts.keys.leader):
                    self._seen = LeaderRecord.FromString(info.candidate) if info else LeaderRecord()
                    self._seen_epoch = info.epoch if info else 0
            except EtcdError as error:
                _log.warning("cannot see who leads", error=str(error))
            await asyncio.sleep(RETRY_SECONDS)

    async def _lead(self, leadership: Leadership) -> None:
        async with self._begin(leadership) as (term, engine):
            self._term = term
            tasks = [
                asyncio.create_task(engine.run(), name="engine"),
                asyncio.create_task(term.keeper.watch_liveness(), name="liveness"),
                asyncio.create_task(term.keeper.watch_claims(), name="released instances"),
                asyncio.create_task(term.keeper.watch_hosts(), name="deleted hosts"),
                asyncio.create_task(term.repairer.run(), name="repairs"),
                asyncio.create_task(leadership.lost.wait(), name="leadership"),
            ]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._term = None
                for task in tasks:
                    task.cancel()
                ended = await asyncio.gather(*tasks, return_exceptions=True)
        for result in ended:
            if isinstance(result, Exception):
                raise result

    @contextlib.asynccontextmanager
    async def _begin(self, leadership: Leadership) -> AsyncIterator[tuple[Term, Engine]]:
        parts = self._parts
        async with contextlib.AsyncExitStack() as stack:
            store = await stack.enter_async_context(open_store(parts.etcd, parts.keys))
            registry = HostRegistry(
                unreachable_after=parts.unreachable_after, duplicate_window=parts.duplicate_window
            )

            def endpoint_of(host: HostId) -> str | None:
                session = registry.session(host)
                if session is not None:
                    return session.agent_endpoint
                status = store.host_status(host)
                return status.agent_endpoint if status else None

            agents = AgentClients(open_channel=parts.open_channel, endpoint_of=endpoint_of)
            stack.push_async_callback(agents.close)
            keeper = HostKeeper(leadership=leadership, registry=registry, store=store, look=agents.observe)
            judge = Judge(leadership=leadership, registry=registry, store=store, look=agents.observe)
            placer = Placer(store=store, registry=registry, keeper=keeper, metrics=parts.metrics)
            prober = Prober(HostProbes(agents.channel), recent=Recent(parts.probe_reuse))
            # Before the channels close: what a probe left is still being taken away.
            stack.push_async_callback(prober.close)
            preflight = Preflight(hosts=placer, prober=prober)
            hub, controls = ProgressHub(), ControlHub()
            # Backwards: a stream looks at what became of its commands when the progress has ended.
            stack.callback(hub.end_all)
            stack.callback(controls.end_all)
            turns = Turns(store, parts.migration_limits)
            leader = LeaderRef(cluster_id=leadership.cluster_id, epoch=leadership.epoch)
            fenced = FencedAgents(agents, leader, store.fenced)
            services = Services(
                etcd=parts.etcd,
                keys=parts.keys,
                store=store,
                leadership=leadership,
                agents=fenced,
                placement=placer,
                preflight=preflight,
                grants=parts.grants,
                turns=turns,
                progress=hub,
                controls=controls,
                metrics=self._leader_metrics,
                timing=parts.timing,
            )
            engine = Engine(services, parts.sagas)
            collecting = _Collecting(engine)
            stack.push_async_callback(collecting.end)
            yield (
                Term(
                    leadership=leadership,
                    store=store,
                    registry=registry,
                    keeper=keeper,
                    judge=judge,
                    agents=agents,
                    placer=placer,
                    preflight=preflight,
                    turns=turns,
                    janitor=Janitor(etcd=parts.etcd, keys=parts.keys, agents=fenced),
                    reconciler=Reconciler(etcd=parts.etcd, store=store, agents=fenced),
                    repairer=Repairer(
                        etcd=parts.etcd,
                        store=store,
                        agents=fenced,
                        grants=parts.grants,
                        metrics=parts.metrics,
                    ),
                    hub=hub,
                    controls=controls,
                    on_attached=collecting.begin,
                ),
                engine,
            )


class _Collecting:
    """Hosts that have just attached pay their debts, each in a task of its own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, host: HostId) -> None:
        task = asyncio.create_task(self._collect(host), name=f"debts of {host}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _collect(self, host: HostId) -> None:
        try:
            await self._engine.pay_debts(host)
        except EtcdError as error:  # the engine asks again before long
            _log.info("debts stay for now", host=host, error=str(error))
