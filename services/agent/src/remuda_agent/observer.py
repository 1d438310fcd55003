"""What really runs here, as the leader wants to hear it."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from google.protobuf.timestamp_pb2 import Timestamp
from remuda.compute.v1.instance_pb2 import Instance
from remuda.scheduler.v1.registry_pb2 import Observations, ObservedInstance
from remuda_core.ids import Epoch, InstanceId

from remuda_agent.hypervisor import DomainJob, DomainView, Hypervisor, PowerState


def observed(view: DomainView) -> ObservedInstance:
    """A domain in the words of the protocol; the names of both enums are the same by construction."""
    return ObservedInstance(
        instance_id=view.instance_id,
        epoch=view.epoch,
        operation_id=view.operation_id,
        power_state=Instance.PowerState.Value(f"POWER_STATE_{view.power_state}"),
        reason=view.reason,
        job=ObservedInstance.JOB_UNSPECIFIED
        if view.job == "NONE"
        else ObservedInstance.Job.Value(f"JOB_{view.job}"),
        persistent=view.persistent,
        observe_time=_now(),
    )


def absent(instance: InstanceId, epoch: Epoch | None = None) -> ObservedInstance:
    """No domain. With an epoch: there are files of that copy."""
    return ObservedInstance(
        instance_id=instance,
        epoch=epoch or 0,
        power_state=Instance.POWER_STATE_ABSENT,
        observe_time=_now(),
    )


class Observer:
    """Looks at the hypervisor and numbers what it saw.

    The sequence rises with every look of this process. It starts at the clock in microseconds, so that it
    goes on rising over a restart of the agent within one boot of the host.

    `migrates` tells whether an accepted migration of an instance has not ended: the hypervisor shows no job
    before it begins one and after it has ended its own, yet whoever reads "no job" takes the guest for free.

    `settling` counts by instance how often the agent itself has begun or ended to stop its CPUs for an
    instant: nobody who reads "paused" may take that for the guest's state.

    `waiting` gives the copies in quarantine. Those without a domain are shown too, or the leader could not
    say what shall become of them.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        *,
        first_sequence: int,
        migrates: Callable[[InstanceId], bool],
        waiting: Callable[[], Mapping[InstanceId, Epoch]] = dict,
        settling: Callable[[], Mapping[InstanceId, int]] = dict,
    ) -> None:
        self._hypervisor = hypervisor
        self._migrates = migrates
        self._waiting = waiting
        self._settling = settling
        self._sequence = first_sequence

    async def one(self, instance: InstanceId) -> ObservedInstance:
        # Asked before looking: the job may end in between, and then the older answer is the careful one.
        migrates = self._migrates(instance)
        before = self._settling()
        view = await self._hypervisor.view(instance)
        if view is None:
            return absent(instance, self._waiting().get(instance))
        return self._shown(view, before, migrates=migrates)

    async def everything(self) -> Observations:
        # The number is drawn before looking: of two looks the later number never holds the older view.
        self._sequence += 1
        sequence = self._sequence
        before = self._settling()
        views = await self._hypervisor.domains()
        instances = [self._shown(view, before, migrates=False) for view in views]
        defined = {view.instance_id for view in views}
        instances += [
            absent(instance, epoch) for instance, epoch in self._waiting().items() if instance not in defined
        ]
        return Observations(sequence=sequence, complete=True, instances=instances)

    def _shown(
        self, view: DomainView, before: Mapping[InstanceId, int], *, migrates: bool
    ) -> ObservedInstance:
        if view.power_state is PowerState.PAUSED:
            began, now = before.get(view.instance_id, 0), self._settling().get(view.instance_id, 0)
            # Under way when the look began, or begun or ended during it: either may be what was seen.
            if began % 2 or now != began:
                view = replace(view, power_state=PowerState.RUNNING, reason="unpaused")
        if migrates or self._migrates(view.instance_id):
            view = replace(view, job=DomainJob.MIGRATION_OUT)
        return observed(view)


def _now() -> Timestamp:
    now = Timestamp()
    now.GetCurrentTime()
    return now
