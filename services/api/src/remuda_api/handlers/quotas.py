"""remuda.compute.v1.QuotaService."""

from typing import Any

from grpc.aio import ServicerContext
from remuda.compute.v1 import quota_pb2 as pb
from remuda.compute.v1.quota_pb2_grpc import QuotaServiceServicer
from remuda_core.rpc.context import caller

from remuda_api.admission.quotas import QuotaAdmission
from remuda_api.admission.requests import Call
from remuda_api.handlers.revisions import answered

Context = ServicerContext[Any, Any]


class QuotaHandler(QuotaServiceServicer):
    def __init__(self, admission: QuotaAdmission) -> None:
        self._admission = admission

    async def GetQuota(self, request: pb.GetQuotaRequest, context: Context) -> pb.Quota:
        return await self._admission.get(request.name)

    async def UpdateQuota(self, request: pb.UpdateQuotaRequest, context: Context) -> pb.Quota:
        call = Call.of("UpdateQuota", request, principal=caller().principal)
        return answered(context, await self._admission.update(call, request))
