"""Networks."""

from remuda.compute.v1 import network_pb2 as public
from remuda.store.v1 import host_pb2 as records
from remuda_core.etcd.cache import Entry
from remuda_core.ids import NetworkId
from remuda_core.names import network_name


def network_record(network: NetworkId, message: public.Network) -> records.NetworkRecord:
    record = records.NetworkRecord(id=network, network=message)
    for field in ("name", "etag", "ports"):
        record.network.ClearField(field)
    return record


def network_message(entry: Entry[records.NetworkRecord], *, ports: int) -> public.Network:
    """`ports`: how many addresses are taken."""
    message = public.Network()
    message.CopyFrom(entry.value.network)
    message.name = network_name(NetworkId(entry.value.id))
    message.etag = str(entry.mod_revision) if entry.mod_revision else ""
    message.ports = ports
    return message
