"""The timeline of an instance: numbered without gaps, bounded in number and in size."""

from remuda.compute.v1.event_pb2 import InstanceEvent
from remuda.store.v1.instance_pb2 import EventRecord, InstanceStatus
from remuda_core.etcd.keys import Keys
from remuda_core.ids import InstanceId
from remuda_scheduler.events import KEPT, MAX_BYTES, append_event

KEYS, INSTANCE = Keys(), InstanceId("i")


def test_status_and_events_are_written_together_and_numbered_on() -> None:
    status = InstanceStatus(last_event=41)
    ops = append_event(KEYS, INSTANCE, status, InstanceEvent(type="A"), InstanceEvent(type="B"))
    puts = {op.request_put.key.decode(): op.request_put.value for op in ops if op.HasField("request_put")}
    assert [EventRecord.FromString(puts[KEYS.event(INSTANCE, n)]).event.type for n in (42, 43)] == ["A", "B"]
    stored = InstanceStatus.FromString(puts[KEYS.instance_status(INSTANCE)])
    assert stored.last_event == 43
    assert stored.HasField("update_time")
    assert len(ops) == 3


def test_without_events_only_the_status_is_written() -> None:
    (op,) = append_event(KEYS, INSTANCE, InstanceStatus(last_event=3))
    assert InstanceStatus.FromString(op.request_put.value).last_event == 3


def test_the_oldest_event_goes_with_every_new_one() -> None:
    ops = append_event(KEYS, INSTANCE, InstanceStatus(last_event=KEPT), InstanceEvent(type="A"))
    deleted = [op.request_delete_range.key.decode() for op in ops if op.HasField("request_delete_range")]
    assert deleted == [KEYS.event(INSTANCE, 1)]


def test_a_long_message_is_cut_to_what_an_event_may_take() -> None:
    event = InstanceEvent(type="A", message="ä" * 4 * MAX_BYTES)
    append_event(KEYS, INSTANCE, InstanceStatus(), event)
    assert event.ByteSize() <= MAX_BYTES
    assert event.message.endswith("ä ...")
