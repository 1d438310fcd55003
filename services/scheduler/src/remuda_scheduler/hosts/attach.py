"""HostRegistryService.Attach: hello, then heartbeats, inventory and observations; acks and verdicts down.

What is observed is stored by a task of its own per stream: a heartbeat must not wait for etcd, or a slow etcd
would make living hosts look silent. Verdicts that are new are said after whatever the host says: so they are
written from one place, and a heartbeat late at most.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
import structlog
from remuda.scheduler.v1 import registry_pb2 as pb
from remuda.scheduler.v1 import registry_pb2_grpc
from remuda_core.errors import Reason, RemudaError, invalid_argument, permission_denied
from remuda_core.rpc.context import caller

from remuda_scheduler.hosts.judge import Announcer
from remuda_scheduler.hosts.registry import Session
from remuda_scheduler.term import Term

_log = structlog.get_logger(__name__)


class HostRegistryService(registry_pb2_grpc.HostRegistryServiceServicer):
    """`term` gives the running leadership, or raises NOT_LEADER / NO_LEADER."""

    def __init__(self, *, term: Callable[[], Term], heartbeat_interval_ms: int) -> None:
        self._term = term
        self._heartbeat_interval_ms = heartbeat_interval_ms

    async def Attach(
        self,
        request_iterator: AsyncIterator[pb.AttachRequest],
        context: "grpc.aio.ServicerContext[pb.AttachRequest, pb.AttachResponse]",
    ) -> AsyncIterator[pb.AttachResponse]:
        term = self._term()
        first = await anext(request_iterator, None)
        if first is None or not first.HasField("hello"):
            raise invalid_argument("hello", "the first message must be the hello")
        hello = first.hello
        if caller().host_id != hello.host_id:
            raise permission_denied(f"{caller().principal} may not attach as host {hello.host_id}")
        await term.keeper.admit(hello)
        session = term.registry.attach(hello)
        absorber = _Absorber(term, session)
        absorber.take(hello.observations)
        announcer = Announcer(term.judge, session)
        _log.info("host attached", host=hello.host_id, hostname=hello.hostname, boot_id=hello.boot_id)
        try:
            yield pb.AttachResponse(
                welcome=pb.Welcome(
                    leader_epoch=term.leadership.epoch,
                    cluster_id=term.leadership.cluster_id,
                    heartbeat_interval_ms=self._heartbeat_interval_ms,
                )
            )
            term.on_attached(session.host_id)
            async for request in request_iterator:
                if not session.open or term.leadership.lost.is_set():
                    break
                absorber.check()
                answer = await _hear(term, session, absorber, request)
                if answer is not None:
                    yield answer
                # A verdict lifts a quarantine: only while nobody else can be leader.
                if term.leadership.safe and (verdicts := announcer.news()):
                    yield pb.AttachResponse(verdicts=pb.Verdicts(verdicts=verdicts))
        finally:
            await announcer.end()
            await absorber.end()
            term.registry.detach(session)
            _log.info("host detached", host=hello.host_id)
        if term.leadership.lost.is_set():
            self._term()  # says who leads now
        raise RemudaError(Reason.SHUTTING_DOWN, "the host attached anew, was deleted, or ended the stream")


class _Absorber:
    """Stores the observations of one stream, one after the other."""

    def __init__(self, term: Term, session: Session) -> None:
        self._term = term
        self._session = session
        self._waiting: list[tuple[list[pb.ObservedInstance], bool]] = []
        """What was observed, and whether that is complete."""
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"observations of {session.host_id}")

    def take(self, observations: pb.Observations) -> None:
        news = self._session.absorb(observations)
        if news is None:
            return
        if observations.complete:
            self._waiting.clear()  # it says everything that those say, and newer
        self._waiting.append((news, observations.complete))
        self._wake.set()

    def check(self) -> None:
        """Raises what storing has failed with: the host attaches anew then, and says everything again."""
        if self._task.done():
            self._task.result()

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                news, complete = self._waiting.pop(0)
                await self._term.keeper.observed(self._session.host_id, news, complete=complete)


async def _hear(
    term: Term, session: Session, absorber: _Absorber, request: pb.AttachRequest
) -> pb.AttachResponse | None:
    match request.WhichOneof("message"):
        case "heartbeat":
            term.registry.heard(session, request.heartbeat)
            # An ack promises time to an armed host: only while nobody else can be leader.
            if term.leadership.safe:
                return pb.AttachResponse(
                    ack=pb.HeartbeatAck(seq=request.heartbeat.seq, leader_epoch=term.leadership.epoch)
                )
        case "inventory":
            term.registry.heard(session)
            await term.keeper.inventory(session, request.inventory)
        case "observations":
            term.registry.heard(session)
            absorber.take(request.observations)
        case _:
            raise invalid_argument("message", "not expected here")
    return None
