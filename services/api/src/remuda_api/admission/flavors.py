"""CreateFlavor, DeleteFlavor."""

from google.protobuf.empty_pb2 import Empty
from remuda.compute.v1 import flavor_pb2 as public
from remuda_core import names
from remuda_core.errors import already_exists, invalid_argument, not_found
from remuda_core.etcd import ops
from remuda_core.etcd.cache import Entry
from remuda_core.ids import FlavorId

from remuda_api.admission.etags import check_etag
from remuda_api.admission.mutations import Answer, Mutations, Plan
from remuda_api.admission.requests import Call
from remuda_api.store.flavors import flavor_message, flavor_record


class FlavorAdmission:
    def __init__(self, mutations: Mutations) -> None:
        self._mutations = mutations

    async def create(self, call: Call, request: public.CreateFlavorRequest) -> Answer[public.Flavor]:
        if request.flavor.name:
            raise invalid_argument("flavor.name", "is made from flavor_id, leave it empty")
        flavor = FlavorId(request.flavor_id)
        key, name = self._mutations.keys.flavor(flavor), names.flavor_name(flavor)
        record = flavor_record(flavor, request.flavor)

        async def attempt() -> Plan[public.Flavor]:
            if await self._mutations.etcd.get(key) is not None:
                raise already_exists(name)
            entry = Entry(key=key, value=record, create_revision=0, mod_revision=0)
            return Plan(
                response=flavor_message(entry),
                compare=[ops.absent(key)],
                success=[ops.put(key, record.SerializeToString(deterministic=True))],
                witness=key,
            )

        return await self._mutations.run(call, attempt, public.Flavor)

    async def delete(self, call: Call, request: public.DeleteFlavorRequest) -> Answer[Empty]:
        name = request.name
        key = self._mutations.keys.flavor(names.parse_flavor(name))

        async def attempt() -> Plan[Empty]:
            seen = await self._mutations.etcd.get(key)
            if seen is None:
                raise not_found(name)
            check_etag(name, request.etag, seen)
            return Plan(
                response=Empty(),
                compare=[ops.mod_is(key, seen.mod_revision)],
                success=[ops.delete(key)],
            )

        return await self._mutations.run(call, attempt, Empty)
