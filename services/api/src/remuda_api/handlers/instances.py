"""remuda.compute.v1.InstanceService."""

from collections.abc import AsyncIterator
from typing import Any

from google.longrunning.operations_pb2 import Operation
from grpc.aio import ServicerContext
from remuda.compute.v1 import instance_pb2 as pb
from remuda.compute.v1 import moving_pb2, reconcile_pb2, snapshot_pb2
from remuda.compute.v1.instance_pb2_grpc import InstanceServiceServicer
from remuda_core import names
from remuda_core.ids import InstanceId, OperationId
from remuda_core.lifecycle import Action
from remuda_core.rpc.context import caller

from remuda_api.admission.instances import InstanceAdmission
from remuda_api.admission.requests import Call
from remuda_api.admission.updates import UpdateAdmission
from remuda_api.admission.verbs import VerbAdmission, VerbRequest
from remuda_api.allowed import allowed_actions
from remuda_api.handlers.revisions import answered, fresh
from remuda_api.leader import LeaderLink
from remuda_api.listing.instances import InstanceRow
from remuda_api.listing.pages import Pager, Query
from remuda_api.listing.queries import InstanceQueries
from remuda_api.listing.tokens import query_digest
from remuda_api.reading import Reads
from remuda_api.store.caches import Caches
from remuda_api.store.instances import instance_message
from remuda_api.visibility import check_shown_to, shown_to
from remuda_api.watching import InstanceWatcher

Context = ServicerContext[Any, Any]

_CONSOLE_BYTES = 64 << 10


class InstanceHandler(InstanceServiceServicer):
    def __init__(
        self,
        *,
        caches: Caches,
        reads: Reads,
        pager: Pager[InstanceRow],
        queries: InstanceQueries,
        creation: InstanceAdmission,
        updates: UpdateAdmission,
        verbs: VerbAdmission,
        watcher: InstanceWatcher,
        leader: LeaderLink,
    ) -> None:
        self._caches = caches
        self._reads = reads
        self._pager = pager
        self._queries = queries
        self._creation = creation
        self._updates = updates
        self._verbs = verbs
        self._watcher = watcher
        self._leader = leader

    async def CreateInstance(self, request: pb.CreateInstanceRequest, context: Context) -> Operation:
        call = Call.of("CreateInstance", request, principal=caller().principal)
        return shown_to(caller(), answered(context, await self._creation.create(call, request)))

    async def GetInstance(self, request: pb.GetInstanceRequest, context: Context) -> pb.Instance:
        await self._fresh(context)
        return await self._reads.instance(request.name)

    async def ListInstances(
        self, request: pb.ListInstancesRequest, context: Context
    ) -> pb.ListInstancesResponse:
        await self._fresh(context)
        project = names.parse_project(request.parent, wildcard=True)
        who = caller()
        query: Query[InstanceRow] = Query(
            prefix=self._queries.prefix(project),
            page_size=request.page_size,
            page_token=request.page_token,
            digest=query_digest("instances", request.parent, request.filter, who.principal),
            keep=await self._queries.keep(request.filter, who),
        )
        page = await self._pager.page(query)
        return pb.ListInstancesResponse(
            instances=[instance_message(row.entry, row.status, row.claim) for row in page.rows],
            next_page_token=page.next_page_token,
        )

    async def UpdateInstance(self, request: pb.UpdateInstanceRequest, context: Context) -> pb.Instance:
        call = Call.of("UpdateInstance", request, principal=caller().principal)
        return answered(context, await self._updates.update(call, request))

    async def DeleteInstance(self, request: pb.DeleteInstanceRequest, context: Context) -> Operation:
        return await self._verb(Action.DELETE, request, context)

    async def StartInstance(self, request: pb.StartInstanceRequest, context: Context) -> Operation:
        return await self._verb(Action.START, request, context)

    async def StopInstance(self, request: pb.StopInstanceRequest, context: Context) -> Operation:
        return await self._verb(Action.STOP, request, context)

    async def LiveMigrateInstance(
        self, request: moving_pb2.LiveMigrateInstanceRequest, context: Context
    ) -> Operation:
        return await self._verb(Action.LIVE_MIGRATE, request, context)

    async def SnapshotInstance(
        self, request: snapshot_pb2.SnapshotInstanceRequest, context: Context
    ) -> Operation:
        return await self._verb(Action.SNAPSHOT, request, context)

    async def ReconcileInstance(
        self, request: reconcile_pb2.ReconcileInstanceRequest, context: Context
    ) -> Operation:
        return await self._verb(Action.RECONCILE, request, context)

    async def CheckMigration(
        self, request: moving_pb2.CheckMigrationRequest, context: Context
    ) -> moving_pb2.CheckMigrationResponse:
        await self._fresh(context)
        row = await self._reads.row(request.name)
        checked = await self._leader.check_migration(InstanceId(row.entry.value.id), request)
        return check_shown_to(caller(), checked)

    async def ListAllowedActions(
        self, request: pb.ListAllowedActionsRequest, context: Context
    ) -> pb.ListAllowedActionsResponse:
        await self._fresh(context)
        row = await self._reads.row(request.name)
        holder = names.operation_name(OperationId(row.claim.operation_id)) if row.claim else ""
        instance = instance_message(row.entry, row.status, row.claim)
        actions = allowed_actions(instance, held_by=holder, admin=caller().is_admin)
        return pb.ListAllowedActionsResponse(actions=actions)

    async def ListInstanceEvents(
        self, request: pb.ListInstanceEventsRequest, context: Context
    ) -> pb.ListInstanceEventsResponse:
        await self._fresh(context)
        row = await self._reads.row(request.parent, field="parent")
        instance = InstanceId(row.entry.value.id)
        return pb.ListInstanceEventsResponse(
            events=await self._reads.events(instance, last=request.page_size)
        )

    async def WatchInstances(
        self, request: pb.WatchInstancesRequest, context: Context
    ) -> AsyncIterator[pb.WatchInstancesResponse]:
        await self._fresh(context)
        prefix = self._queries.prefix(names.parse_project(request.parent, wildcard=True))
        async for response in self._watcher.watch(prefix, caller().may_see):
            yield response

    async def GetConsoleOutput(
        self, request: pb.GetConsoleOutputRequest, context: Context
    ) -> pb.GetConsoleOutputResponse:
        await self._fresh(context)
        row = await self._reads.row(request.name)
        instance = InstanceId(row.entry.value.id)
        read = await self._leader.read_console(instance, request.max_bytes or _CONSOLE_BYTES)
        return pb.GetConsoleOutputResponse(output=read.output, truncated=read.truncated)

    async def _verb(self, action: Action, request: VerbRequest, context: Context) -> Operation:
        call = Call.of(action.rpc, request, principal=caller().principal)
        return shown_to(caller(), answered(context, await self._verbs.admit(call, action, request)))

    async def _fresh(self, context: Context) -> None:
        await fresh(context, self._reads, self._caches.instances, self._caches.statuses, self._caches.claims)
