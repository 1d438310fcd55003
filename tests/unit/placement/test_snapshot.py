"""What is taken on a host is derived from what is stored: nothing is kept in a book of its own."""

from remuda.compute.v1.host_pb2 import Host, HostInventory, HostPool
from remuda.compute.v1.instance_pb2 import Instance
from remuda.store.v1.instance_pb2 import InstanceRecord, InstanceStatus
from remuda.store.v1.operation_pb2 import Reservation
from remuda_core.ids import HostId, InstanceId
from remuda_scheduler.placement.snapshot import Usage, host_facts, usage_by_host

A, B = HostId("a"), HostId("b")
WEB, DB = InstanceId("i"), InstanceId("j")
RECORDS = {WEB: InstanceRecord(vcpus=1, memory_mib=64), DB: InstanceRecord(vcpus=2, memory_mib=128)}


def living(host: str, state: "Instance.State.ValueType" = Instance.STATE_RUNNING) -> InstanceStatus:
    return InstanceStatus(host_id=host, state=state)


def reservation(host: str, instance: str) -> Reservation:
    return Reservation(
        host_id=host, instance_id=instance, vcpus=2, memory_mib=128, disk_bytes=7, pool="local"
    )


def test_instances_count_where_they_live_whether_they_run_or_not() -> None:
    usage = usage_by_host(RECORDS, {WEB: living(A), DB: living(A, Instance.STATE_STOPPED)}, [])
    assert (usage[A].vcpus, usage[A].memory_mib, usage[A].instances) == (3, 192, 2)
    assert B not in usage


def test_a_shelved_instance_and_one_without_a_host_take_nothing() -> None:
    assert usage_by_host(RECORDS, {WEB: living(A, Instance.STATE_SHELVED), DB: living("")}, []) == {}


def test_during_a_move_both_hosts_are_charged() -> None:
    usage = usage_by_host(RECORDS, {DB: living(A)}, [reservation(B, DB)])
    assert (usage[A].memory_mib, usage[B].memory_mib) == (128, 128)
    assert usage[B].reserved_disk_bytes == {"local": 7}


def test_a_reservation_that_has_become_the_allocation_is_not_counted_twice() -> None:
    """The two come by two watches: for a moment both may be seen."""
    usage = usage_by_host(RECORDS, {DB: living(B)}, [reservation(B, DB)])
    assert (usage[B].memory_mib, usage[B].instances) == (128, 1)
    assert not usage[B].reserved_disk_bytes


def test_reserved_disk_space_is_told_by_the_uid_of_the_storage() -> None:
    """Two hosts that share a pool may call it differently."""
    taken = Usage(vcpus=2, memory_mib=128, instances=1)
    taken.reserved_disk_bytes["mine"] = 7
    taken.reserved_disk_bytes["gone"] = 9
    facts = host_facts(
        host=A,
        name="alpha",
        cordoned=True,
        state=Host.STATE_UNKNOWN,
        inventory=HostInventory(memory_mib=512, pools=[HostPool(name="mine", uid="u", available_bytes=10)]),
        usage=taken,
    )
    assert (facts.up, facts.state, facts.cordoned) == (False, "unknown", True)
    assert dict(facts.reserved_disk_bytes) == {"u": 7}
    assert facts.used_memory_mib == 128
