"""What is to be done about an instance, given its record and the copies that were found. Pure.

Nothing is repaired by overwriting what is there: a QEMU that runs is never destroyed, no disk is made or
removed, and where two disks may hold different things a person decides. What the record calls the instance's
own copy is made true again; all others are kept from doing harm.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from remuda.agent.v1.agent_pb2 import FoundDirectory
from remuda.compute.v1.instance_pb2 import Instance
from remuda.compute.v1.reconcile_pb2 import Repair
from remuda.scheduler.v1.registry_pb2 import ObservedInstance
from remuda_core.ids import HostId
from remuda_core.lifecycle import State, state_name
from remuda_core.names import host_name

_RUNNING, _PAUSED = Instance.POWER_STATE_RUNNING, Instance.POWER_STATE_PAUSED
_FOLLOWS_THE_GUEST = frozenset(
    {
        Instance.STATE_CREATING,
        Instance.STATE_RUNNING,
        Instance.STATE_PAUSED,
        Instance.STATE_STOPPED,
        Instance.STATE_FAILED,
    }
)
"""All others are left by operations only: a rescued, resized, suspended or shelved guest stays that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intended:
    """The record."""

    host_id: HostId
    epoch: int
    pool: str
    state: State
    message: str = ""
    runs: bool = True
    """Its owner wants it running."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """What one host shows of the instance; on a shared pool several hosts show the same directory."""

    host_id: HostId
    name: str
    domain: ObservedInstance | None = None
    directories: Sequence[FoundDirectory] = ()
    foreign: Sequence[str] = ()
    """Paths that bear its UUID and are not Remuda's."""

    @property
    def active(self) -> bool:
        return self.domain is not None and self.domain.power_state in (_RUNNING, _PAUSED)


@dataclass(slots=True, kw_only=True)
class Decision:
    repairs: list[Repair] = field(default_factory=list)
    state: State = Instance.STATE_UNSPECIFIED
    """What the record shall say when the repairs are done; UNSPECIFIED: what it says."""
    message: str = ""

    def add(self, action: "Repair.Action.ValueType", reason: str, host: str = "") -> None:
        self.repairs.append(
            Repair(action=action, reason=reason, host=host_name(HostId(host)) if host else "")
        )

    def ask(self, reason: str, host: str = "") -> None:
        self.add(Repair.ACTION_ASK_OPERATOR, reason, host)


def decide(intended: Intended, copies: Sequence[Copy], silent: Sequence[HostId]) -> Decision:
    """`silent`: hosts that did not answer."""
    decision = Decision()
    if intended.state == Instance.STATE_DELETING:
        decision.ask("the instance is to be deleted: delete it again")
        return decision
    if not intended.host_id:
        for copy in copies:
            decision.ask(
                "the record names no host, so this copy is nobody's: delete the instance", copy.host_id
            )
        return decision
    if intended.host_id in silent:
        decision.ask("its host does not answer: nothing can be told of the copy on record", intended.host_id)
        return decision
    if _in_motion(copies, decision):
        return decision
    own = next((copy for copy in copies if copy.host_id == intended.host_id), None)
    own = own or Copy(host_id=intended.host_id, name="its host")
    strays = [copy for copy in copies if copy.host_id != intended.host_id and copy.domain is not None]
    if own.active:
        _own_is_active(intended, own, copies, strays, decision)
    else:
        _own_is_off(intended, own, copies, strays, decision)
    _record(intended, decision)
    return decision


def _in_motion(copies: Sequence[Copy], decision: Decision) -> bool:
    """Whoever reconciles holds the instance, so no operation moves it: somebody does by hand."""
    for copy in copies:
        if copy.domain is None:
            continue
        if copy.domain.reason.startswith("postcopy"):
            decision.ask(
                "its memory is split over two hosts: abort the post-copy on its source, then resume it; until"
                " then nothing here may be stopped",
                copy.host_id,
            )
        elif copy.domain.job != ObservedInstance.JOB_UNSPECIFIED:
            job = ObservedInstance.Job.Name(copy.domain.job).removeprefix("JOB_").lower()
            decision.ask(f"libvirt works on it ({job}): wait for its end, then reconcile again", copy.host_id)
    return bool(decision.repairs)


# --- the copy on record runs, or is paused ---


def _own_is_active(
    intended: Intended, own: Copy, copies: Sequence[Copy], strays: Sequence[Copy], decision: Decision
) -> None:
    assert own.domain is not None
    if own.domain.epoch != intended.epoch:
        decision.ask(
            f"what runs here is of epoch {own.domain.epoch}, the record is of {intended.epoch}: was the store"
            " restored from a backup? Find out which is right",
            own.host_id,
        )
        return
    for stray in strays:
        _contain(stray, own, decision)
    if not own.domain.persistent:
        reason = "it runs without a definition: defined again from the record, what runs is not touched"
        decision.add(Repair.ACTION_DEFINE, reason, own.host_id)
    if (trouble := _disk_trouble(intended, own, copies)) is not None:
        decision.ask(f"it runs, and only as long as it is not switched off: {trouble}", own.host_id)
    paused = own.domain.power_state == _PAUSED
    decision.state = Instance.STATE_PAUSED if paused else Instance.STATE_RUNNING


def _contain(stray: Copy, own: Copy, decision: Decision) -> None:
    assert stray.domain is not None
    how = "look at its disk, then destroy and undefine it there by hand, or delete the instance"
    if stray.domain.power_state == _RUNNING:
        decision.add(
            Repair.ACTION_PAUSE_STRAY,
            f"it runs beside the copy on record on {own.name}: paused, never destroyed; {how}",
            stray.host_id,
        )
    elif stray.domain.power_state == _PAUSED:
        decision.ask(
            f"a second copy is paused here, the one on record is on {own.name}: {how}", stray.host_id
        )
    else:
        decision.add(
            Repair.ACTION_REMOVE_STRAY,
            f"a definition that is off; the copy on record is on {own.name}. Files are left alone",
            stray.host_id,
        )


# --- it is off, or not there ---


def _own_is_off(
    intended: Intended, own: Copy, copies: Sequence[Copy], strays: Sequence[Copy], decision: Decision
) -> None:
    if any(stray.active for stray in strays):
        _others_are_alive(intended, own, strays, decision)
        return
    if own.domain is not None and own.domain.epoch > intended.epoch:
        decision.ask(
            f"the definition here is of epoch {own.domain.epoch}, the record is of {intended.epoch}: was the"
            " store restored from a backup? Find out which is right",
            own.host_id,
        )
        return
    if (trouble := _disk_trouble(intended, own, copies)) is not None:
        decision.ask(trouble, own.host_id)
        if intended.state in _FOLLOWS_THE_GUEST:
            decision.state, decision.message = Instance.STATE_FAILED, trouble
        return
    for stray in strays:
        _contain(stray, own, decision)
    if own.domain is None:
        decision.add(
            Repair.ACTION_DEFINE,
            "its files are there and no domain: defined again from the record",
            own.host_id,
        )
    elif own.domain.epoch < intended.epoch:
        reason = f"its definition is of epoch {own.domain.epoch}: defined again from the record"
        decision.add(Repair.ACTION_DEFINE, reason, own.host_id)
    if intended.state not in _FOLLOWS_THE_GUEST:
        return
    if intended.runs:
        decision.add(Repair.ACTION_START, "it is off, and its owner wants it running", own.host_id)
        decision.state = Instance.STATE_RUNNING
    else:
        decision.state = Instance.STATE_STOPPED


def _others_are_alive(intended: Intended, own: Copy, strays: Sequence[Copy], decision: Decision) -> None:
    """Which disk is right is not for a program to say; and on one disk the image lock lets only one run."""
    home = next((one for one in own.directories if one.pool == intended.pool), None)
    for stray in strays:
        if not stray.active:
            continue
        same = (
            home is not None
            and home.shared
            and any(one.pool_uid == home.pool_uid for one in stray.directories)
        )
        disk = "on the same disk" if same else "on a disk of its own"
        reason = (
            f"it runs here, {disk}, although the record says {own.name}, where it is off: shut it down here"
            " and reconcile again to have it run by record"
        )
        if not same:
            reason += "; what it has written here is then not in the disk on record"
        decision.ask(reason, stray.host_id)
        decision.state = Instance.STATE_FAILED
        decision.message = f"a copy that is not on record runs on {stray.name}, {disk}"


def _disk_trouble(intended: Intended, own: Copy, copies: Sequence[Copy]) -> str | None:
    """Why the copy on record cannot be started from what lies there; None: it can."""
    directory = next((one for one in own.directories if one.pool == intended.pool), None)
    if directory is None or not _has_disk(directory):
        found = _found_elsewhere(own, copies, directory)
        where = f"; found: {', '.join(found)}. Move it back and reconcile again" if found else ""
        what = "its directory" if directory is None else "its disk"
        return f"{what} is not in pool {intended.pool} of {own.name}{where or ', nor anywhere else'}"
    if directory.damage:
        return f"its owner.json cannot be read: {directory.damage}"
    if directory.owner_host_id != intended.host_id or directory.epoch > intended.epoch:
        whose = f"host {directory.owner_host_id}" if directory.owner_host_id else "nobody"
        return f"its directory belongs to {whose}, epoch {directory.epoch}, by its owner.json"
    if not any(file.path.endswith("/config.img") for file in directory.files):
        return f"its config drive is not in pool {intended.pool} of {own.name}: move it back"
    return None


def _found_elsewhere(own: Copy, copies: Sequence[Copy], home: FoundDirectory | None) -> list[str]:
    """Disks of the instance in other places, and whatever bears its name."""
    found = {}
    for copy in copies:
        for one in copy.directories:
            shown = home is not None and (one.pool, one.pool_uid) == (home.pool, home.pool_uid)
            if not shown and _has_disk(one):
                found[f"{one.pool_uid}/{one.pool}"] = f"{one.pool}/instances/{one.instance_id} on {copy.name}"
        for path in copy.foreign:
            found[f"{copy.host_id}/{path}"] = f"{path} on {copy.name}"
    if home is not None:
        found |= {
            file.path: f"{home.pool}/{file.path} on {own.name}"
            for file in home.files
            if not file.path.endswith("/config.img")
        }
    return list(found.values())


def _has_disk(directory: FoundDirectory) -> bool:
    # By its one name: whatever else begins with "disk" is what somebody has set aside.
    return any(file.path.endswith("/disk.qcow2") for file in directory.files)


def _record(intended: Intended, decision: Decision) -> None:
    """The last repair: what the record says is changed to what is then true."""
    if intended.state not in _FOLLOWS_THE_GUEST:
        decision.state, decision.message = Instance.STATE_UNSPECIFIED, ""
    same = decision.state in (Instance.STATE_UNSPECIFIED, intended.state)
    if same and (not decision.message or decision.message == intended.message):
        return
    shall = state_name(decision.state)
    reason = f"the record says {state_name(intended.state)}; it is then {shall}"
    decision.add(Repair.ACTION_RECORD, f"{reason}: {decision.message}" if decision.message else reason)
