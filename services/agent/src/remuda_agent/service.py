"""AgentService: translates orders of the leader into jobs, and jobs into answers."""

from collections.abc import AsyncIterator

import grpc
from google.rpc.status_pb2 import Status
from remuda.agent.v1 import agent_pb2 as pb
from remuda.agent.v1 import agent_pb2_grpc
from remuda_core.errors import RemudaError
from remuda_core.ids import InstanceId
from remuda_core.rpc.status import to_status

from remuda_agent.base_cache.offering import ChunkOffers
from remuda_agent.console import ConsoleReader
from remuda_agent.jobs import Job, JobTable
from remuda_agent.leaders import LeaderGuard
from remuda_agent.leftovers.surveying import Surveyor
from remuda_agent.leftovers.sweeping import Sweeper
from remuda_agent.observer import Observer
from remuda_agent.steps import StepRunner


class AgentService(agent_pb2_grpc.AgentServiceServicer):
    """Only the leader calls it (the policy table says so); which leader is checked here."""

    def __init__(
        self,
        *,
        leaders: LeaderGuard,
        jobs: JobTable,
        steps: StepRunner,
        observer: Observer,
        console: ConsoleReader,
        surveyor: Surveyor,
        sweeper: Sweeper,
        offers: ChunkOffers,
        boot_id: str,
    ) -> None:
        self._leaders = leaders
        self._jobs = jobs
        self._steps = steps
        self._observer = observer
        self._console = console
        self._surveyor = surveyor
        self._sweeper = sweeper
        self._offers = offers
        self._boot_id = boot_id

    async def Fence(
        self, request: pb.FenceRequest, context: "grpc.aio.ServicerContext[pb.FenceRequest, pb.FenceResponse]"
    ) -> pb.FenceResponse:
        self._leaders.acknowledge(request.leader)
        return pb.FenceResponse(boot_id=self._boot_id)

    async def RunStep(
        self,
        request: pb.RunStepRequest,
        context: "grpc.aio.ServicerContext[pb.RunStepRequest, pb.RunStepResponse]",
    ) -> AsyncIterator[pb.RunStepResponse]:
        # Acknowledging, not only checking: a leader that never had to fence this host is the newest too.
        self._leaders.acknowledge(request.key.leader)

        async def work(job: Job) -> pb.StepOutput:
            return await self._steps.run(request, job)

        job, joined = self._jobs.start_or_join(request.key, work)
        yield pb.RunStepResponse(accepted=pb.StepAccepted(joined=joined))
        async for progress in job.follow():
            yield pb.RunStepResponse(progress=progress)
        try:
            done = pb.StepDone(status=Status(), output=await job.result())
        except RemudaError as error:
            done = pb.StepDone(status=to_status(error, request_id=request.key.request_id))
        yield pb.RunStepResponse(done=done)

    async def ObserveInstance(
        self,
        request: pb.ObserveInstanceRequest,
        context: "grpc.aio.ServicerContext[pb.ObserveInstanceRequest, pb.ObserveInstanceResponse]",
    ) -> pb.ObserveInstanceResponse:
        return pb.ObserveInstanceResponse(observed=await self._observer.one(InstanceId(request.instance_id)))

    async def ReadConsole(
        self,
        request: pb.ReadConsoleRequest,
        context: "grpc.aio.ServicerContext[pb.ReadConsoleRequest, pb.ReadConsoleResponse]",
    ) -> pb.ReadConsoleResponse:
        tail = await self._console.tail(InstanceId(request.instance_id), request.max_bytes)
        return pb.ReadConsoleResponse(output=tail.output, truncated=tail.truncated)

    async def Survey(
        self,
        request: pb.SurveyRequest,
        context: "grpc.aio.ServicerContext[pb.SurveyRequest, pb.SurveyResponse]",
    ) -> pb.SurveyResponse:
        self._leaders.acknowledge(request.leader)
        instance = InstanceId(request.instance_id) if request.instance_id else None
        return await self._surveyor.survey(instance, digests=request.digests)

    async def Sweep(
        self,
        request: pb.SweepRequest,
        context: "grpc.aio.ServicerContext[pb.SweepRequest, pb.SweepResponse]",
    ) -> pb.SweepResponse:
        self._leaders.acknowledge(request.leader)
        return pb.SweepResponse(receipts=await self._sweeper.sweep(request))

    async def OfferChunks(
        self,
        request: pb.OfferChunksRequest,
        context: "grpc.aio.ServicerContext[pb.OfferChunksRequest, pb.OfferChunksResponse]",
    ) -> pb.OfferChunksResponse:
        self._leaders.acknowledge(request.leader)
        return pb.OfferChunksResponse(repaired=await self._offers.offer(request))
