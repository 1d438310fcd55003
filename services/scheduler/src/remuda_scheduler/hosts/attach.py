"""HostRegistryService.Attach: hello, then heartbeats, inventory and observations; acks down."""

from collections.abc import AsyncIterator, Callable

import grpc
import structlog
from remuda.scheduler.v1 import registry_pb2 as pb
from remuda.scheduler.v1 import registry_pb2_grpc
from remuda_core.errors import Reason, RemudaError, invalid_argument, permission_denied
from remuda_core.rpc.context import caller

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
        _log.info("host attached", host=hello.host_id, hostname=hello.hostname, boot_id=hello.boot_id)
        try:
            yield pb.AttachResponse(
                welcome=pb.Welcome(
                    leader_epoch=term.leadership.epoch,
                    cluster_id=term.leadership.cluster_id,
                    heartbeat_interval_ms=self._heartbeat_interval_ms,
                )
            )
            await _observations(term, session, hello.observations)
            term.on_attached(session.host_id)
            async for request in request_iterator:
                if not session.open or term.leadership.lost.is_set():
                    break
                answer = await _hear(term, session, request)
                if answer is not None:
                    yield answer
        finally:
            term.registry.detach(session)
            _log.info("host detached", host=hello.host_id)
        if term.leadership.lost.is_set():
            self._term()  # says who leads now
        raise RemudaError(Reason.SHUTTING_DOWN, "the host has attached anew, or the stream was ended")


async def _hear(term: Term, session: Session, request: pb.AttachRequest) -> pb.AttachResponse | None:
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
            await _observations(term, session, request.observations)
        case _:
            raise invalid_argument("message", "not expected here")
    return None


async def _observations(term: Term, session: Session, observations: pb.Observations) -> None:
    if observations.sequence <= session.observation_sequence:
        return
    news = session.absorb(observations)
    await term.keeper.observed(session.host_id, news, complete=observations.complete)
