"""When guests last went on here, as the hypervisor's events tell: the target's half of a downtime."""

from datetime import datetime

from remuda_core.ids import InstanceId

from remuda_agent.hypervisor import EventKind, HypervisorEvent


class ResumeTimes:
    """Remembers the last RESUMED event of every instance."""

    def __init__(self) -> None:
        self._times: dict[InstanceId, datetime] = {}

    def hear(self, event: HypervisorEvent) -> None:
        if event.instance_id is None:
            return
        if event.kind is EventKind.RESUMED:
            self._times[event.instance_id] = event.time
        elif event.kind is EventKind.UNDEFINED:
            self._times.pop(event.instance_id, None)

    def last(self, instance: InstanceId) -> datetime | None:
        return self._times.get(instance)
