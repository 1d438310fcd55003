"""Flavors."""

from remuda.compute.v1 import flavor_pb2 as public
from remuda.store.v1 import host_pb2 as records
from remuda_core.etcd.cache import Entry
from remuda_core.ids import FlavorId
from remuda_core.names import flavor_name


def flavor_record(flavor: FlavorId, message: public.Flavor) -> records.FlavorRecord:
    record = records.FlavorRecord(id=flavor, flavor=message)
    record.flavor.ClearField("name")
    record.flavor.ClearField("etag")
    return record


def flavor_message(entry: Entry[records.FlavorRecord]) -> public.Flavor:
    message = public.Flavor()
    message.CopyFrom(entry.value.flavor)
    message.name = flavor_name(FlavorId(entry.value.id))
    message.etag = str(entry.mod_revision) if entry.mod_revision else ""
    return message
