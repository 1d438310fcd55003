"""No device of the host is passed through to the guest: its state cannot be moved."""

from remuda.compute.v1.moving_pb2 import MigrationCheck

from remuda_scheduler.preflight.facts import Facts, NoAnswer
from remuda_scheduler.preflight.rows import FAIL, PASS, row, unknown

_CONDITION = MigrationCheck.CONDITION_DEVICES
_REQUIRED = "no device of the host in the guest"


def devices(facts: Facts) -> MigrationCheck | None:
    if facts.probes is None:
        return None
    probe = facts.probes.guest
    if isinstance(probe.found, NoAnswer):
        return unknown(facts, _CONDITION, of=(probe,), source=probe, required=_REQUIRED)
    passed = list(probe.found.host_devices)
    return row(
        facts,
        _CONDITION,
        FAIL if passed else PASS,
        of=(probe,),
        source=", ".join(passed) or "none",
        required=_REQUIRED,
        fix="Detach the devices from the guest, or stop it and move it cold." if passed else "",
    )
