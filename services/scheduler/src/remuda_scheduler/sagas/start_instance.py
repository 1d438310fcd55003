"""StartInstance: a guest that is off runs, on the host where its disks are.

Parameters: the instance.

Point of no return: the last txn. Until then a start that failed or was cancelled is undone by switching the
guest off again, unless it was running when we came: then it was never ours to stop.
"""

from remuda.agent.v1.agent_pb2 import StartDomain
from remuda.compute.v1.instance_pb2 import Instance
from remuda.store.v1.instance_pb2 import InstanceStatus
from remuda.store.v1.saga_pb2 import PowerState
from remuda_core.errors import RemudaError

from remuda_scheduler.engine.run import Run
from remuda_scheduler.engine.saga import Ending, Saga, Step
from remuda_scheduler.sagas.guest import answer, observed_state
from remuda_scheduler.sagas.power import begin_on_host, host_of, note_power_state

_Run = Run[PowerState]


async def start_guest(run: _Run) -> None:
    run.state.output.CopyFrom(await run.order(run.state.host_id, run.state.epoch, start_domain=StartDomain()))


async def switch_off_again(run: _Run) -> None:
    if run.state.before not in (Instance.POWER_STATE_RUNNING, Instance.POWER_STATE_PAUSED):
        await run.order(run.state.host_id, run.state.epoch, undo=True, start_domain=StartDomain())


async def succeed(run: _Run) -> Ending:
    def change(status: InstanceStatus) -> None:
        # A rescued or resized instance stays what it is; its power is in `observed`.
        if status.state not in (Instance.STATE_RESCUED, Instance.STATE_RESIZED):
            status.state = Instance.STATE_RUNNING
        status.status_message = ""
        if run.state.output.HasField("observed"):
            status.observed.CopyFrom(observed_state(run.state.host_id, run.state.output.observed))

    _, status = await run.instance()
    change(status)
    return Ending(change=change, response=await answer(run, status))


async def fail(_run: _Run, _error: RemudaError) -> Ending:
    """The instance stays what it was; the event says why."""
    return Ending()


SAGA = Saga(
    action="StartInstance",
    state=PowerState,
    begin=begin_on_host,
    steps=(
        Step(name="power_state_noted", do=note_power_state),
        Step(name="guest_started", do=start_guest, undo=switch_off_again, host=host_of),
    ),
    succeed=succeed,
    fail=fail,
)
