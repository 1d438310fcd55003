"""remuda.compute.v1.MigrationService."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from grpc.aio import ServicerContext
from remuda.compute.v1 import migration_pb2 as pb
from remuda.compute.v1.migration_pb2_grpc import MigrationServiceServicer
from remuda.store.v1.instance_pb2 import MigrationRecord
from remuda_core import names
from remuda_core.etcd.cache import Entry
from remuda_core.rpc.context import caller

from remuda_api.handlers.revisions import fresh
from remuda_api.listing.pages import Pager, Query
from remuda_api.listing.tokens import query_digest
from remuda_api.reading import Reads
from remuda_api.steering import MigrationSteering
from remuda_api.store.caches import Caches
from remuda_api.visibility import migration_shown_to

Context = ServicerContext[Any, Any]
Row = Entry[MigrationRecord]


class MigrationHandler(MigrationServiceServicer):
    def __init__(self, caches: Caches, reads: Reads, pager: Pager[Row], steering: MigrationSteering) -> None:
        self._caches = caches
        self._reads = reads
        self._pager = pager
        self._steering = steering

    async def GetMigration(self, request: pb.GetMigrationRequest, context: Context) -> pb.Migration:
        await fresh(context, self._reads, self._caches.migrations)
        return migration_shown_to(caller(), await self._reads.migration(request.name))

    async def ListMigrations(
        self, request: pb.ListMigrationsRequest, context: Context
    ) -> pb.ListMigrationsResponse:
        await fresh(context, self._reads, self._caches.migrations)
        prefix, within = await self._scope(request.parent)
        query: Query[Row] = Query(
            prefix=prefix,
            page_size=request.page_size,
            page_token=request.page_token,
            digest=query_digest("migrations", request.parent),
            keep=lambda row: row.value.migration.name.startswith(within),
            sort_key=newest_first,
        )
        page = await self._pager.page(query)
        return pb.ListMigrationsResponse(
            migrations=[migration_shown_to(caller(), row.value.migration) for row in page.rows],
            next_page_token=page.next_page_token,
        )

    async def ControlMigration(
        self, request_iterator: AsyncIterator[pb.ControlMigrationRequest], context: Context
    ) -> AsyncIterator[pb.ControlMigrationResponse]:
        await fresh(context, self._reads, self._caches.migrations)
        steered = self._steering.steer(request_iterator, caller())
        async with aclosing(steered) as responses:
            async for response in responses:
                yield response

    async def _scope(self, parent: str) -> tuple[str, str]:
        """Where the keys begin, and how the names of what may be shown begin."""
        project, _, instance = parent.partition("/instances/")
        if instance == "-":
            within = f"{names.project_name(names.parse_project(project))}/instances/"
            return self._caches.keys.migrations, within
        found = await self._reads.instance_name(parent, field="parent")
        return f"{self._caches.keys.migrations}{found.instance}/", f"{found}/"


def newest_first(row: Row) -> tuple[int, str]:
    return -row.value.migration.create_time.ToNanoseconds(), row.key
