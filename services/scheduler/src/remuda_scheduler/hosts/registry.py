"""Which hosts are attached and what they said last. In memory only: a steady cluster writes nothing.

A new leader begins with an empty registry, and agents attach to it anew; so nothing here needs to survive.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from remuda.compute.v1.host_pb2 import HostInventory
from remuda.scheduler.v1.registry_pb2 import Heartbeat, Hello, Observations, ObservedInstance
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId, InstanceId

DUPLICATE_WINDOW_SECONDS = 2.0
"""A session heard within it is alive: another boot of the same UUID is then a second machine, not the first
one come back from a reboot. Longer than a heartbeat's interval, shorter than any boot.
"""


@dataclass(slots=True, kw_only=True, eq=False)
class Session:
    """One Attach stream. Replaced as a whole when the host attaches again."""

    host_id: HostId
    hostname: str
    boot_id: str
    agent_endpoint: str
    inventory: HostInventory
    armed: bool
    heard_at: float
    """Monotonic time of the last message."""
    last_seq: int = 0
    observation_sequence: int = -1
    observed: dict[InstanceId, ObservedInstance] = field(default_factory=dict)
    open: bool = True

    def absorb(self, observations: Observations) -> list[ObservedInstance] | None:
        """Takes observations over and returns those that may differ from what was known.

        None for an older sequence: an agent sends from several tasks, and what is overtaken is wrong.
        """
        if observations.sequence <= self.observation_sequence:
            return None
        self.observation_sequence = observations.sequence
        news = list(observations.instances)
        if observations.complete:
            listed = {InstanceId(seen.instance_id) for seen in news}
            self.observed = {key: seen for key, seen in self.observed.items() if key in listed}
        for seen in news:
            self.observed[InstanceId(seen.instance_id)] = seen
        return news


class HostRegistry:
    """The attached hosts. Not thread-safe: one event loop owns it."""

    def __init__(
        self,
        *,
        unreachable_after: float,
        duplicate_window: float = DUPLICATE_WINDOW_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Both times in seconds."""
        self.unreachable_after = unreachable_after
        self._duplicate_window = duplicate_window
        self._clock = clock
        self._elected_at = clock()
        self._sessions: dict[HostId, Session] = {}

    def refuse_duplicate(self, hello: Hello) -> None:
        """Raises DUPLICATE_HOST when another boot of the same UUID is attached and was heard just now: two
        machines with one identity, or a clone. Whoever came first stays.
        """
        host = HostId(hello.host_id)
        known = self._sessions.get(host)
        if known is None or not known.open or known.boot_id == hello.boot_id:
            return
        if self.silent_seconds(host) < self._duplicate_window:
            raise RemudaError(
                Reason.DUPLICATE_HOST,
                f"host {host} is attached already, from {known.agent_endpoint} with another boot id",
                metadata={"host": host, "boot_id": known.boot_id},
            )

    def attach(self, hello: Hello) -> Session:
        """Opens a session; one of the same boot is replaced (its stream was lost and it does not know yet).

        Raises: DUPLICATE_HOST, see `refuse_duplicate`.
        """
        self.refuse_duplicate(hello)
        host = HostId(hello.host_id)
        known = self._sessions.get(host)
        if known:
            known.open = False
        session = Session(
            host_id=host,
            hostname=hello.hostname,
            boot_id=hello.boot_id,
            agent_endpoint=hello.agent_endpoint,
            inventory=hello.inventory,
            armed=hello.armed,
            heard_at=self._clock(),
        )
        self._sessions[host] = session
        return session

    def heard(self, session: Session, heartbeat: Heartbeat | None = None) -> None:
        session.heard_at = self._clock()
        if heartbeat is not None:
            session.last_seq = max(session.last_seq, heartbeat.seq)
            session.armed = heartbeat.armed

    def detach(self, session: Session) -> None:
        """The stream ended. The session stays as the last word of the host until it attaches anew."""
        session.open = False

    def forget(self, host: HostId) -> None:
        """The host was deleted: its stream ends with its next word."""
        session = self._sessions.pop(host, None)
        if session is not None:
            session.open = False

    def session(self, host: HostId) -> Session | None:
        return self._sessions.get(host)

    def sessions(self) -> Mapping[HostId, Session]:
        return self._sessions

    def attached(self, host: HostId) -> bool:
        session = self._sessions.get(host)
        return session is not None and session.open

    def silent_seconds(self, host: HostId) -> float:
        """Since the last word of the host; since the election when it has said none to this leader."""
        session = self._sessions.get(host)
        return self._clock() - (session.heard_at if session else self._elected_at)
