"""Whether something on a host may be removed. Pure: what a host shows against what the store says.

Never a disk of which no other copy is proven, nothing that runs, and nothing that the record, an open
operation or a debt names. Whatever stays without being needed comes with a sentence for an operator.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from remuda.agent.v1.agent_pb2 import FoundDirectory, FoundFile, SurveyResponse
from remuda.compute.v1.instance_pb2 import Instance
from remuda.scheduler.v1.registry_pb2 import ObservedInstance
from remuda_core.ids import HostId, InstanceId

OLD_SECONDS = 3600.0
"""No probe, fetch or launch leaves alone for so long what it is still going to use."""

_OFF = (Instance.POWER_STATE_SHUTOFF, Instance.POWER_STATE_CRASHED)


class Fate(Enum):
    NEEDED = auto()
    """By record, or by what is on the host: not worth a line."""
    STAYS = auto()
    REMOVABLE = auto()
    COMPARE = auto()
    """Removable when both disks are read and found equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    fate: Fate
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One instance by the store."""

    host_id: HostId
    epoch: int
    pool: str
    manifest_digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """The store, read after the host was listed."""

    host_id: HostId
    records: Mapping[InstanceId, Recorded] = field(default_factory=dict)
    held: Mapping[InstanceId, str] = field(default_factory=dict)
    """Instances that an open operation holds, and its name."""
    owed: Mapping[InstanceId, str] = field(default_factory=dict)
    """Instances for which some host owes clean-up, and what."""
    bases: frozenset[tuple[str, str]] = frozenset()
    """(pool, manifest digest) of whatever is here by record, by reservation or by debt."""
    shared_pools: frozenset[str] = frozenset()
    host_names: Mapping[HostId, str] = field(default_factory=dict)
    """For sentences."""

    def name(self, host: str) -> str:
        return self.host_names.get(HostId(host)) or f"host {host}"


Elsewhere = Mapping[InstanceId, SurveyResponse | None]
"""What the hosts on record show of instances that are not here; None: the host does not answer."""

_NEEDED = Verdict(fate=Fate.NEEDED)


def _stays(reason: str) -> Verdict:
    return Verdict(fate=Fate.STAYS, reason=reason)


def _removable(reason: str) -> Verdict:
    return Verdict(fate=Fate.REMOVABLE, reason=reason)


def judge_directory(
    found: FoundDirectory, known: Known, elsewhere: Elsewhere, *, active: bool, compared: bool = False
) -> Verdict:
    """`active`: a domain of the instance runs or is paused here. `compared`: digests were asked for."""
    instance = InstanceId(found.instance_id)
    record = known.records.get(instance)
    at_home = record is not None and (record.host_id == known.host_id or found.shared)
    if record is not None and at_home and record.pool == found.pool:
        return _NEEDED
    if found.shared and found.owner_host_id not in ("", known.host_id):
        return _NEEDED  # another host's, which lists it itself
    if (kept := _kept(instance, known)) is not None:
        return kept
    if found.damage:
        return _stays(f"its owner.json cannot be read, so nobody knows whose it is: {found.damage}")
    if not found.owner_host_id:
        return _stays("it has no owner.json, so nobody knows whose it is: look at it, then remove it by hand")
    if found.owner_host_id != known.host_id:
        owner = known.name(found.owner_host_id)
        return _stays(f"its owner.json names {owner}: was the pool moved hither? Remove it there or by hand")
    if active:
        return _stays(
            "a domain of the instance is active here: `remuda instance reconcile` says which is right"
        )
    if record is None or not record.host_id:
        return _unrecorded(record)
    if found.role == "owner" and found.epoch >= record.epoch:
        return _stays(
            f"its epoch {found.epoch} is not older than the record's {record.epoch}: was the store restored"
            " from a backup? Compare by hand"
        )
    return _judge_spare(found, record, known, elsewhere, compared=compared)


def _judge_spare(
    found: FoundDirectory, record: Recorded, known: Known, elsewhere: Elsewhere, *, compared: bool
) -> Verdict:
    """The record's own copy is another one: it has to be there, and to hold what this one holds."""
    home = known.name(record.host_id)
    survey = elsewhere.get(InstanceId(found.instance_id))
    if survey is None:
        return _stays(f"{home}, which has the copy on record, does not answer: sweep again when it does")
    own = _copy_on_record(found.instance_id, record, survey)
    if own is None:
        return _stays(f"{home} does not show the copy on record: `remuda instance reconcile` it first")
    if found.role == "incoming":
        return _removable(
            f"left by a move that did not come here (epoch {found.epoch}); the copy on record is on {home}"
        )
    disks = [file for file in found.files if file.kind == FoundFile.KIND_DISK]
    if not disks:
        return _removable(f"it holds no disk; the copy on record, of epoch {record.epoch}, is on {home}")
    theirs = {_base_name(file): file for file in own.files if file.kind == FoundFile.KIND_DISK}
    pairs = [(mine, theirs.get(_base_name(mine))) for mine in disks]
    if not compared:
        return Verdict(fate=Fate.COMPARE, reason=f"its disk was not compared with the one on {home}")
    if any(not mine.digest or their is None or not their.digest for mine, their in pairs):
        return _stays(
            f"its disk and the one on {home} cannot be compared while one is in use: stop the instance and"
            " sweep again, or remove it by hand"
        )
    if all(
        their is not None and (mine.virtual_bytes, mine.digest) == (their.virtual_bytes, their.digest)
        for mine, their in pairs
    ):
        return _removable(f"its disk holds the same as the one on {home}, of epoch {record.epoch}")
    return _stays(
        f"its disk differs from the one on {home}, and may hold what that does not: compare by hand"
    )


def judge_domain(found: ObservedInstance, known: Known, elsewhere: Elsewhere) -> Verdict:
    instance = InstanceId(found.instance_id)
    record = known.records.get(instance)
    if record is not None and record.host_id == known.host_id and record.epoch == found.epoch:
        return _NEEDED
    if (kept := _kept(instance, known)) is not None:
        return kept
    if found.power_state not in _OFF:
        return _stays("it is active, and what runs is never removed: `remuda instance reconcile` says more")
    if record is None or not record.host_id:
        return _unrecorded(record)
    if record.host_id == known.host_id or found.epoch >= record.epoch:
        return _stays(
            f"its epoch {found.epoch} is not the record's {record.epoch}: `remuda instance reconcile` says"
            " more"
        )
    home, survey = known.name(record.host_id), elsewhere.get(instance)
    if survey is None:
        return _stays(f"{home}, which has the copy on record, does not answer: sweep again when it does")
    if not any(one.instance_id == instance and one.epoch == record.epoch for one in survey.domains):
        return _stays(f"{home} does not show the copy on record: `remuda instance reconcile` it first")
    return _removable(f"it is off; the copy on record, of epoch {record.epoch}, is on {home}")


def judge_file(found: FoundFile, known: Known, *, age_seconds: float) -> Verdict:
    """`age_seconds`: since its last change, by the host's own clock."""
    if found.kind == FoundFile.KIND_FOREIGN:
        return _stays("Remuda did not make it: remove it by hand when it is not yours either")
    if found.in_use:
        return _NEEDED
    if found.kind == FoundFile.KIND_TEMPORARY:
        if age_seconds < OLD_SECONDS:
            return _stays("it is younger than an hour: a probe or a fetch may still be at it")
        return _removable("left by a probe or a broken fetch")
    if found.kind != FoundFile.KIND_BASE_IMAGE:
        return _stays("files of this kind are never removed")
    digest = _base_name(found).partition(".")[0]
    if (found.pool, digest) in known.bases:
        return _NEEDED
    if found.pool in known.shared_pools:
        return _stays("no disk here lies on it, but other hosts share the pool and may be about to need it")
    if age_seconds < OLD_SECONDS:
        return _stays("it was asked for less than an hour ago")
    return _removable("no disk lies on it; it is fetched again when it is needed")


def _kept(instance: InstanceId, known: Known) -> Verdict | None:
    if (operation := known.held.get(instance)) is not None:
        return _stays(f"{operation} works on the instance: sweep again when it has ended")
    if (debt := known.owed.get(instance)) is not None:
        return _stays(f"{debt}, which is done by itself when its host can be reached")
    return None


def _unrecorded(record: Recorded | None) -> Verdict:
    if record is None:
        return _stays(
            "the store knows no such instance: when it was not restored from a backup, remove it by hand"
        )
    return _stays("the instance is on no host by record, so no other copy is proven: delete the instance")


def _copy_on_record(instance: str, record: Recorded, survey: SurveyResponse) -> FoundDirectory | None:
    """With its disk."""
    for one in survey.directories:
        place = (one.instance_id, one.pool, one.owner_host_id, one.epoch)
        has_disk = any(file.kind == FoundFile.KIND_DISK for file in one.files)
        if place == (instance, record.pool, record.host_id, record.epoch) and has_disk:
            return one
    return None


def _base_name(file: FoundFile) -> str:
    return file.path.rpartition("/")[2]
