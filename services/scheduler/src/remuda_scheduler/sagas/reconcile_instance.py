"""ReconcileInstance: somebody worked on a host by hand, and the record is made true again, or says what is.

Parameters: none. What is to be done is decided once, by the pure function reconcile.deciding.decide, from the
record and from what every host that answers shows; its report is the operation's answer.

Copies that are not on record come first, so that nothing is started while a second one still writes. Whatever
a host refuses is noted in the report and does not end the operation: the record then says what is the matter.
Only the host on record must answer.

Point of no return: the txn that opens `strays_contained`. Up to there everything was looking. Afterwards
there is nothing to undo: every repair by itself makes the instance more as its record says.
"""

from collections.abc import Awaitable, Callable

from remuda.agent.v1.agent_pb2 import DefineDomain, EnsureBaseImage, PauseDomain, StartDomain, SweepTarget
from remuda.compute.v1.event_pb2 import InstanceEvent
from remuda.compute.v1.instance_pb2 import Instance
from remuda.compute.v1.reconcile_pb2 import Repair
from remuda.store.v1.instance_pb2 import InstanceStatus
from remuda.store.v1.saga_pb2 import ReconcileState
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId, ImageId
from remuda_core.names import parse_host

from remuda_scheduler.engine.debts import debts_of, settle
from remuda_scheduler.engine.run import Run
from remuda_scheduler.engine.saga import Commit, Ending, Saga, Step
from remuda_scheduler.reconcile.deciding import decide
from remuda_scheduler.reconcile.finding import find_copies
from remuda_scheduler.reconcile.reporting import LONGEST, report_of
from remuda_scheduler.reconcile.service import intended_of
from remuda_scheduler.sagas.guest import domain_spec, observed_state

_Run = Run[ReconcileState]

_OWN = (Repair.ACTION_DEFINE, Repair.ACTION_START)
_NOT_A_REFUSAL = frozenset(
    {Reason.HOST_UNREACHABLE, Reason.QUARANTINED, Reason.STALE_LEADER, Reason.UNAVAILABLE, Reason.CANCELLED}
)


async def decide_repairs(run: _Run) -> None:
    await _pay_debts(run)
    record, status = await run.instance()
    intended = intended_of(record, status)
    found = await find_copies(
        run.services.agents, run.services.store, run.instance_id, on_record=intended.host_id
    )
    host = intended.host_id
    if host in found.silent and not run.services.store.fenced(host):
        raise RemudaError(Reason.HOST_UNREACHABLE, f"host {host}, which has it by record, does not answer")
    decision = decide(intended, found.copies, found.silent)
    state = run.state
    state.host_id, state.pool, state.epoch = host, intended.pool, intended.epoch
    state.report.CopyFrom(report_of(intended, found, decision))
    state.state, state.status_message = decision.state, decision.message[:LONGEST]
    state.strays.clear()
    for copy in found.copies:
        if copy.host_id != host and copy.domain is not None:
            state.strays[copy.host_id].CopyFrom(copy.domain)


async def _pay_debts(run: _Run) -> None:
    """What a host owes would be done behind our back, after we have looked. One that cannot be paid stays."""
    owed = await debts_of(run.services, instance=run.instance_id)
    for host in sorted({HostId(entry.value.host_id) for entry in owed}):
        try:
            await settle(run.services, host, run.instance_id, mine=run.operation_id)
        except RemudaError as error:
            run.log.warning("still owed", host=host, error=str(error))


async def contain_strays(run: _Run) -> None:
    for number, repair in enumerate(run.state.report.repairs):
        if repair.action not in (Repair.ACTION_PAUSE_STRAY, Repair.ACTION_REMOVE_STRAY):
            continue
        host = HostId(parse_host(repair.host, field="host"))
        stray = run.state.strays[host]

        async def pause(host: HostId = host, epoch: int = stray.epoch, number: int = number) -> None:
            await run.order(host, epoch, step=f"stray_paused.{number}", pause_domain=PauseDomain())

        async def remove(host: HostId = host) -> None:
            target = SweepTarget(domain=run.state.strays[host], reason="not the copy on record, and off")
            requester = run.metadata.requester
            (receipt,) = await run.services.agents.sweep(host, [target], principal=requester)
            if not receipt.removed:
                raise RemudaError(Reason.STEP_FAILED, receipt.reason)

        try:
            await _do(repair, pause if repair.action == Repair.ACTION_PAUSE_STRAY else remove)
        except RemudaError as error:
            if error.reason is not Reason.HOST_UNREACHABLE:
                raise
            repair.error = error.message[:LONGEST]  # it goes without: the copy on record is another one


async def fetch_base_image(run: _Run) -> None:
    """Whoever tidied up by hand may have taken it along; a base that is there is not fetched."""
    if not _acts(run, *_OWN):
        return
    record, _ = await run.instance()
    host = HostId(run.state.host_id)
    images = [ImageId(record.image_id)]
    grant = run.services.grants.sign(host_id=host, operation_id=run.operation_id, images=images)
    work = EnsureBaseImage(
        image_id=record.image_id,
        manifest_digest=record.manifest_digest,
        grant=grant,
        pool=run.state.pool,
    )
    try:
        await run.order(host, run.state.epoch, ensure_base_image=work)
    except RemudaError as error:
        if error.reason in _NOT_A_REFUSAL:
            raise
        # It may be there all the same, in a store that is not: the start tells.
        run.log.warning("the base image is not sure to be there", error=str(error))


async def define_domain(run: _Run) -> None:
    for repair in _repairs(run, Repair.ACTION_DEFINE):

        async def define() -> None:
            record, status = await run.instance()
            spec = await domain_spec(
                run, record, ports=status.ports, pool=status.pool, machine_type=status.machine_type
            )
            await run.order(run.state.host_id, run.state.epoch, define_domain=DefineDomain(spec=spec))

        await _do(repair, define)


async def start_guest(run: _Run) -> None:
    for repair in _repairs(run, Repair.ACTION_START):
        if any(one.error for one in _repairs(run, Repair.ACTION_DEFINE)):
            repair.error = "its domain could not be defined"
            continue

        async def start() -> None:
            await run.order(run.state.host_id, run.state.epoch, start_domain=StartDomain())

        await _do(repair, start)


async def tell_truth(run: _Run) -> None:
    """What the record shall say after all: a repair that was refused leaves another truth than planned."""
    state = run.state
    failed = next((one for one in _repairs(run, *_OWN) if one.error), None)
    if failed is not None and state.state != Instance.STATE_UNSPECIFIED:
        state.state = Instance.STATE_FAILED
        state.status_message = f"not reconciled: {failed.error}"[:LONGEST]
    if state.host_id and not run.services.store.fenced(HostId(state.host_id)):
        seen = await run.services.agents.observe(HostId(state.host_id), run.instance_id)
        state.observed.CopyFrom(seen)
    for repair in _repairs(run, Repair.ACTION_RECORD):
        repair.done = True


async def _do(repair: Repair, act: Callable[[], Awaitable[None]]) -> None:
    """What the host itself refuses is noted. Raises RemudaError when it is silent or obeys another leader."""
    if repair.done or repair.error:
        return
    try:
        await act()
    except RemudaError as error:
        if error.reason in _NOT_A_REFUSAL:
            raise
        repair.error = error.message[:LONGEST]
    else:
        repair.done = True


def _repairs(run: _Run, *actions: "Repair.Action.ValueType") -> list[Repair]:
    return [repair for repair in run.state.report.repairs if repair.action in actions]


def _acts(run: _Run, *actions: "Repair.Action.ValueType") -> bool:
    return bool(_repairs(run, *actions))


def _host(run: _Run) -> str:
    """Empty where nothing is to be done there: then nothing of it need be waited for either."""
    return run.state.host_id if _acts(run, *_OWN) else ""


async def succeed(run: _Run) -> Ending:
    memory = run.state

    def change(status: InstanceStatus) -> None:
        if memory.state != Instance.STATE_UNSPECIFIED:
            status.state, status.status_message = memory.state, memory.status_message
        if memory.HasField("observed"):
            status.observed.CopyFrom(observed_state(memory.host_id, memory.observed))

    return Ending(
        change=change, response=memory.report, events=tuple(_event(run, one) for one in memory.report.repairs)
    )


def _event(run: _Run, repair: Repair) -> InstanceEvent:
    action = Repair.Action.Name(repair.action).removeprefix("ACTION_")
    fine = repair.done and repair.action != Repair.ACTION_PAUSE_STRAY
    return run.event(
        f"RECONCILE_{action}",
        f"{repair.reason}{f' (refused: {repair.error})' if repair.error else ''}",
        host=repair.host.rpartition("/")[2],
        severity=InstanceEvent.SEVERITY_INFO if fine else InstanceEvent.SEVERITY_WARNING,
    )


async def fail(_run: _Run, _error: RemudaError) -> Ending:
    """The instance stays what its record said; the event says why."""
    return Ending()


SAGA = Saga(
    action="ReconcileInstance",
    state=ReconcileState,
    steps=(
        Step(name="repairs_decided", do=decide_repairs, deadline_seconds=180.0),
        Step(name="strays_contained", do=contain_strays, commits=Commit.IF_NOT_CANCELLED),
        Step(name="base_image_present", do=fetch_base_image, host=_host, deadline_seconds=3600.0),
        Step(name="domain_defined", do=define_domain, host=_host),
        Step(name="guest_started", do=start_guest, host=_host),
        Step(name="record_true", do=tell_truth),
    ),
    succeed=succeed,
    fail=fail,
)
