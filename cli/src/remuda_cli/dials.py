"""Single keys to commands, for `remuda migration control`. Pure: no terminal, no call, no clock."""

from dataclasses import dataclass, field

from remuda.compute.v1 import migration_pb2 as pb

HELP = "b/B less/more bandwidth  d/D shorter/longer pause  p post-copy  f pause and finish  c cancel  q leave"
SURE_SECONDS = 3.0
"""Within that time the same key again means it."""

_MOST_MIB_S = 1_000_000
_MOST_DOWNTIME_MS = 60_000
_DEFAULT_DOWNTIME_MS = 300
_MIB = 1 << 20
_Request = pb.ControlMigrationRequest
_FINAL = {
    "p": ("let it go on at the target at once", _Request(switch_to_post_copy=pb.SwitchToPostCopy())),
    "f": ("pause the guest until it is over", _Request(pause_and_finish=pb.PauseAndFinish())),
    "c": ("give the move up", _Request(cancel=pb.GiveUp())),
}
"""What the guest feels, or what cannot be taken back: asked for twice."""


@dataclass(slots=True, kw_only=True)
class Dials:
    """Where the dials stand, as far as this client knows: each turn halves or doubles."""

    downtime_ms: int = _DEFAULT_DOWNTIME_MS
    bandwidth_mib_s: int = 0
    """0: no cap was set from here; the first turn starts from what is being sent."""
    _asked: str = ""
    _asked_at: float = field(default=0.0)

    def press(self, key: str, *, now: float, sent_bytes_per_second: int) -> tuple[_Request | None, str]:
        """The command, or none yet, and what to say. `now`: seconds of any clock."""
        if key in _FINAL:
            words, command = _FINAL[key]
            if self._asked == key and now - self._asked_at <= SURE_SECONDS:
                self._asked = ""
                return command, words
            self._asked, self._asked_at = key, now
            return None, f"{key} again to {words}"
        self._asked = ""
        if key in ("b", "B"):
            base = self.bandwidth_mib_s or max(1, round(sent_bytes_per_second / _MIB))
            self.bandwidth_mib_s = _turned(base, up=key == "B", most=_MOST_MIB_S)
            dial = pb.SetBandwidth(mib_per_second=self.bandwidth_mib_s)
            return _Request(set_bandwidth=dial), f"bandwidth {self.bandwidth_mib_s} MiB/s"
        if key in ("d", "D"):
            self.downtime_ms = _turned(self.downtime_ms, up=key == "D", most=_MOST_DOWNTIME_MS)
            pause = pb.SetMaxDowntime(max_downtime_ms=self.downtime_ms)
            return _Request(set_max_downtime=pause), f"longest pause {self.downtime_ms} ms"
        return None, ""


def _turned(value: int, *, up: bool, most: int) -> int:
    return min(most, value * 2) if up else max(1, value // 2)
