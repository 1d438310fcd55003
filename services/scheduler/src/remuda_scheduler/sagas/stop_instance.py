"""StopInstance: the guest is off; its disks stay on its host.

Parameters: `grace` after the power button (60 s when not given), `force`. `discard_memory` was checked in
admission.

Point of no return: the txn that opens `guest_off`. A guest that has seen the power button goes down on its
own, and nothing can call that back. So a stop that fails later is not undone: the operation says why, and
what the host observes decides what the instance is.
"""

import dataclasses

from google.protobuf.duration_pb2 import Duration
from remuda.agent.v1.agent_pb2 import StopDomain
from remuda.compute.v1.event_pb2 import InstanceEvent
from remuda.compute.v1.instance_pb2 import Instance, StopInstanceRequest
from remuda.store.v1.instance_pb2 import InstanceStatus
from remuda.store.v1.saga_pb2 import PowerState
from remuda_core.errors import RemudaError

from remuda_scheduler.engine.run import Run
from remuda_scheduler.engine.saga import Commit, Ending, Saga, Step
from remuda_scheduler.sagas.guest import answer, observed_state
from remuda_scheduler.sagas.power import begin_on_host, host_of

_Run = Run[PowerState]

DEFAULT_GRACE_SECONDS = 60
_LONGEST_GRACE_SECONDS = 3600


async def stop_guest(run: _Run) -> None:
    request = StopInstanceRequest()
    run.record.request.Unpack(request)
    grace = request.grace if request.HasField("grace") else Duration(seconds=DEFAULT_GRACE_SECONDS)
    run.state.output.CopyFrom(
        await run.order(
            run.state.host_id,
            run.state.epoch,
            stop_domain=StopDomain(grace=grace, force=request.force),
        )
    )


async def succeed(run: _Run) -> Ending:
    def change(status: InstanceStatus) -> None:
        if status.state not in (Instance.STATE_RESCUED, Instance.STATE_RESIZED):
            status.state = Instance.STATE_STOPPED
        status.status_message = ""
        if run.state.output.HasField("observed"):
            status.observed.CopyFrom(observed_state(run.state.host_id, run.state.output.observed))

    _, status = await run.instance()
    change(status)
    ending = Ending(change=change, response=await answer(run, status))
    if not run.state.output.forced:
        return ending
    forced = run.event(
        "GUEST_FORCED_OFF",
        "The guest was switched off: forced, or not down within its grace time.",
        host=run.state.host_id,
        severity=InstanceEvent.SEVERITY_WARNING,
    )
    return dataclasses.replace(ending, events=(forced,))


async def fail(_run: _Run, _error: RemudaError) -> Ending:
    return Ending()


SAGA = Saga(
    action="StopInstance",
    state=PowerState,
    begin=begin_on_host,
    steps=(
        Step(
            name="guest_off",
            do=stop_guest,
            host=host_of,
            deadline_seconds=_LONGEST_GRACE_SECONDS + 120.0,
            commits=Commit.IF_NOT_CANCELLED,
        ),
    ),
    succeed=succeed,
    fail=fail,
)
