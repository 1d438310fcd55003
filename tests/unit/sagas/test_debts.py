"""Which orders may be owed, and what a delete makes of each: every kind of work is decided about."""

import pytest
from remuda.agent.v1.agent_pb2 import (
    DefineDomain,
    FinishIncoming,
    PrepareDisks,
    PrepareIncoming,
    ReleaseSource,
    RemoveInstance,
    RunStepRequest,
)
from remuda.agent.v1.common_pb2 import DomainSpec, LeaderRef, StepKey
from remuda.store.v1.instance_pb2 import Port
from remuda_core.ids import HostId
from remuda_scheduler.engine.debts import debt_of, may_be_owed, order_of, with_ports
from remuda_scheduler.sagas.inheriting import removal_in

SPEC = DomainSpec(pool="pool")
ORDERS = {
    "ensure_base_image": None,
    "snapshot_disk": None,
    "prepare_disks": RunStepRequest(prepare_disks=PrepareDisks(spec=SPEC)),
    "define_domain": RunStepRequest(define_domain=DefineDomain(spec=SPEC)),
    "remove_instance": RunStepRequest(remove_instance=RemoveInstance(pool="pool")),
    "prepare_incoming": RunStepRequest(prepare_incoming=PrepareIncoming(spec=SPEC)),
    "finish_incoming": RunStepRequest(finish_incoming=FinishIncoming(pool="pool")),
    "release_source": RunStepRequest(release_source=ReleaseSource(pool="pool")),
}
"""Work that may be owed; None: it leaves nothing of the instance on a host."""
RUN_STATE = {"start_domain", "stop_domain", "pause_domain"}


def bare(work: str) -> RunStepRequest:
    request = RunStepRequest()
    getattr(request, work).SetInParent()
    return request


def test_every_kind_of_work_is_either_clean_up_or_about_the_run_state() -> None:
    kinds = {field.name for field in RunStepRequest.DESCRIPTOR.oneofs_by_name["work"].fields}
    assert kinds == set(ORDERS) | RUN_STATE
    assert {work for work in kinds if not may_be_owed(bare(work))} == RUN_STATE


@pytest.mark.parametrize("work", [work for work, order in ORDERS.items() if order is not None])
def test_whatever_is_owed_for_a_copy_becomes_the_removal_of_its_files(work: str) -> None:
    order = ORDERS[work]
    assert order is not None
    assert removal_in(order) == RemoveInstance(pool="pool")


def test_a_removal_leaves_the_files_that_another_host_owns() -> None:
    for order in (
        RunStepRequest(prepare_incoming=PrepareIncoming(spec=SPEC, shared_disks=True)),
        RunStepRequest(release_source=ReleaseSource(pool="pool", shared_disks=True)),
        RunStepRequest(remove_instance=RemoveInstance(pool="pool", keep_shared_files=True)),
    ):
        assert removal_in(order) == RemoveInstance(pool="pool", keep_shared_files=True)


def test_what_leaves_no_files_is_not_turned_into_a_removal() -> None:
    for work in {*RUN_STATE, "ensure_base_image"}:
        assert removal_in(bare(work)) is None


def test_a_debt_keeps_the_order_and_forgets_the_leader_of_that_day() -> None:
    key = StepKey(operation_id="o", step="s", instance_id="i", epoch=7, leader=LeaderRef(epoch=3))
    order = RunStepRequest(key=key, release_source=ReleaseSource(pool="pool"))
    debt = debt_of(HostId("h"), order)
    assert (debt.host_id, debt.operation_id, debt.step, debt.instance_id, debt.epoch) == (
        "h",
        "o",
        "s",
        "i",
        7,
    )
    key.ClearField("leader")
    assert order_of(debt) == RunStepRequest(key=key, release_source=ReleaseSource(pool="pool"))


def test_the_same_ports_hang_on_a_debt_only_once() -> None:
    debt = debt_of(HostId("h"), RunStepRequest(), [Port(id="1")])
    assert [port.id for port in with_ports(debt, [Port(id="1"), Port(id="2")]).ports] == ["1", "2"]
    assert [port.id for port in debt.ports] == ["1"], "unchanged"
