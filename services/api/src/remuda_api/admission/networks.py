"""CreateNetwork, DeleteNetwork."""

from google.protobuf.empty_pb2 import Empty
from remuda.compute.v1 import network_pb2 as public
from remuda_core import names
from remuda_core.errors import Reason, RemudaError, already_exists, invalid_argument, not_found
from remuda_core.etcd import ops
from remuda_core.etcd.cache import Entry
from remuda_core.ids import NetworkId

from remuda_api.admission.addresses import check_network
from remuda_api.admission.etags import check_etag
from remuda_api.admission.mutations import Answer, Mutations, Plan
from remuda_api.admission.requests import Call
from remuda_api.store.networks import network_message, network_record


class NetworkAdmission:
    def __init__(self, mutations: Mutations) -> None:
        self._mutations = mutations

    async def create(self, call: Call, request: public.CreateNetworkRequest) -> Answer[public.Network]:
        if request.network.name:
            raise invalid_argument("network.name", "is made from network_id, leave it empty")
        network = NetworkId(request.network_id)
        key, name = self._mutations.keys.network(network), names.network_name(network)
        record = network_record(network, check_network(request.network))

        async def attempt() -> Plan[public.Network]:
            if await self._mutations.etcd.get(key) is not None:
                raise already_exists(name)
            entry = Entry(key=key, value=record, create_revision=0, mod_revision=0)
            return Plan(
                response=network_message(entry, ports=0),
                compare=[ops.absent(key)],
                success=[ops.put(key, record.SerializeToString(deterministic=True))],
                witness=key,
            )

        return await self._mutations.run(call, attempt, public.Network)

    async def delete(self, call: Call, request: public.DeleteNetworkRequest) -> Answer[Empty]:
        name = request.name
        network = names.parse_network(name)
        key, ports = self._mutations.keys.network(network), self._mutations.keys.ports(network)

        async def attempt() -> Plan[Empty]:
            seen = await self._mutations.etcd.get(key)
            if seen is None:
                raise not_found(name)
            check_etag(name, request.etag, seen)
            if taken := await self._mutations.etcd.count(ports):
                raise RemudaError(
                    Reason.NETWORK_IN_USE, f"{name} has {taken} ports", metadata={"ports": str(taken)}
                )
            return Plan(
                response=Empty(),
                # A port that is made meanwhile makes the transaction fail, and this look again.
                compare=[ops.mod_is(key, seen.mod_revision), ops.absent_prefix(ports)],
                success=[ops.delete(key)],
            )

        return await self._mutations.run(call, attempt, Empty)
