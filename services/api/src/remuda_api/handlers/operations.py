"""google.longrunning.Operations and remuda.compute.v1.OperationService."""

from collections.abc import AsyncIterator
from typing import Any

from google.longrunning import operations_pb2 as lro
from google.longrunning.operations_pb2_grpc import OperationsServicer
from google.protobuf.empty_pb2 import Empty
from grpc.aio import ServicerContext
from remuda.compute.v1 import operation_pb2 as pb
from remuda.compute.v1.operation_pb2_grpc import OperationServiceServicer
from remuda.store.v1.operation_pb2 import OperationRecord
from remuda_core import names
from remuda_core.auth.policy import require_project
from remuda_core.errors import invalid_argument
from remuda_core.etcd.cache import Entry
from remuda_core.ids import OperationId, ProjectId
from remuda_core.rpc.context import caller, timeout_for

from remuda_api.admission.operations import OperationAdmission
from remuda_api.following import OperationWatcher
from remuda_api.handlers.revisions import add_revision, fresh
from remuda_api.listing.filters import parse_filter
from remuda_api.listing.pages import Pager, Query
from remuda_api.listing.tokens import query_digest
from remuda_api.reading import Reads
from remuda_api.store.caches import Caches
from remuda_api.visibility import shown_to

Context = ServicerContext[Any, Any]
Row = Entry[OperationRecord]

_FILTER_FIELDS = ("done", "action", "target", "state", "requester")
_LONGEST_WAIT_SECONDS = 600.0


class OperationHandler(OperationsServicer, OperationServiceServicer):
    def __init__(
        self,
        *,
        caches: Caches,
        reads: Reads,
        pager: Pager[Row],
        admission: OperationAdmission,
        watcher: OperationWatcher,
    ) -> None:
        self._caches = caches
        self._reads = reads
        self._pager = pager
        self._admission = admission
        self._watcher = watcher

    async def GetOperation(self, request: lro.GetOperationRequest, context: Context) -> lro.Operation:
        await fresh(context, self._reads, self._caches.operations)
        return shown_to(caller(), self._reads.operation_message(await self._entry(request.name)))

    async def ListOperations(
        self, request: lro.ListOperationsRequest, context: Context
    ) -> lro.ListOperationsResponse:
        """Those of the caller's projects; `filter` knows done, action, target, state, requester."""
        await fresh(context, self._reads, self._caches.operations)
        if request.name not in ("", "operations"):
            raise invalid_argument("name", "operations are listed under `operations`")
        wanted, who = parse_filter(request.filter, _FILTER_FIELDS), caller()
        query: Query[Row] = Query(
            prefix=self._caches.keys.operations,
            page_size=request.page_size,
            page_token=request.page_token,
            digest=query_digest("operations", request.filter, who.principal),
            keep=lambda row: (
                who.may_see(ProjectId(row.value.project)) and wanted.holds(lambda f: _field(row.value, f))
            ),
        )
        page = await self._pager.page(query)
        return lro.ListOperationsResponse(
            operations=[shown_to(who, self._reads.operation_message(row)) for row in page.rows],
            next_page_token=page.next_page_token,
        )

    async def WaitOperation(self, request: lro.WaitOperationRequest, context: Context) -> lro.Operation:
        await fresh(context, self._reads, self._caches.operations)
        entry = await self._entry(request.name)
        asked = (
            request.timeout.ToNanoseconds() / 1e9 if request.HasField("timeout") else _LONGEST_WAIT_SECONDS
        )
        # Answers before the caller's deadline, with whatever it is by then.
        seconds = timeout_for(min(max(asked, 0.0), _LONGEST_WAIT_SECONDS), slack_seconds=0.2)
        return shown_to(caller(), await self._watcher.wait(OperationId(entry.value.id), seconds))

    async def CancelOperation(self, request: lro.CancelOperationRequest, context: Context) -> Empty:
        entry = await self._entry(request.name)
        revision = await self._admission.cancel(OperationId(entry.value.id), principal=caller().principal)
        if revision:
            add_revision(context, revision)
        return Empty()

    async def DeleteOperation(self, request: lro.DeleteOperationRequest, context: Context) -> Empty:
        entry = await self._entry(request.name)
        return await self._admission.delete(OperationId(entry.value.id))

    async def WatchOperation(
        self, request: pb.WatchOperationRequest, context: Context
    ) -> AsyncIterator[pb.WatchOperationResponse]:
        await fresh(context, self._reads, self._caches.operations)
        entry = await self._entry(request.name)
        async for operation in self._watcher.watch(OperationId(entry.value.id)):
            yield pb.WatchOperationResponse(operation=shown_to(caller(), operation))

    async def _entry(self, name: str) -> Row:
        """Raises OPERATION_NOT_FOUND, and PERMISSION_DENIED for one of a project that is not the caller's."""
        entry = await self._reads.operation_entry(names.parse_operation(name))
        require_project(caller(), ProjectId(entry.value.project))
        return entry


def _field(record: OperationRecord, field: str) -> str:
    metadata = record.metadata
    match field:
        case "done":
            return "true" if record.done else "false"
        case "action":
            return record.action
        case "target":
            return metadata.target
        case "requester":
            return metadata.requester
        case _:
            return pb.OperationMetadata.State.Name(metadata.state).removeprefix("STATE_")
