"""Appending to an instance's timeline, in the same transaction as the change it tells of."""

from google.protobuf.timestamp_pb2 import Timestamp
from remuda.compute.v1.event_pb2 import InstanceEvent
from remuda.store.v1.instance_pb2 import EventRecord, InstanceStatus
from remuda_core.etcd.keys import Keys
from remuda_core.etcd.ops import Op, delete, put
from remuda_core.ids import InstanceId

KEPT = 200
"""Events kept per instance; the oldest goes with every new one."""

MAX_BYTES = 1024


def append_event(
    keys: Keys, instance: InstanceId, status: InstanceStatus, *events: InstanceEvent
) -> list[Op]:
    """Operations that store `status` with its new last_event, and the events; trims the oldest.

    Changes `status`: its last_event and update_time. The caller's compare on the status key is what keeps
    two writers from taking the same number.
    """
    ops: list[Op] = []
    now = Timestamp()
    now.GetCurrentTime()
    for event in events:
        status.last_event += 1
        event.sequence = status.last_event
        if not event.HasField("time"):
            event.time.CopyFrom(now)
        if (excess := event.ByteSize() - MAX_BYTES) > 0:
            kept = event.message.encode()[: -(excess + 8)]
            event.message = kept.decode(errors="ignore") + " ..."
        ops.append(put(keys.event(instance, event.sequence), EventRecord(event=event).SerializeToString()))
        if event.sequence > KEPT:
            ops.append(delete(keys.event(instance, event.sequence - KEPT)))
    status.update_time.CopyFrom(now)
    ops.append(put(keys.instance_status(instance), status.SerializeToString()))
    return ops
