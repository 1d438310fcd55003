"""What may be removed from a host: the table of durability's rules, case by case."""

from dataclasses import dataclass, field, replace

import pytest
from remuda.agent.v1.agent_pb2 import FoundDirectory, FoundFile, SurveyResponse
from remuda.compute.v1.instance_pb2 import Instance
from remuda.scheduler.v1.registry_pb2 import ObservedInstance
from remuda_core.ids import HostId, InstanceId
from remuda_scheduler.janitor.judging import (
    Fate,
    Known,
    Recorded,
    judge_directory,
    judge_domain,
    judge_file,
)

HERE, THERE, THIRD = HostId("here"), HostId("there"), HostId("third")
VM = InstanceId("vm")
OFF, RUNNING = Instance.POWER_STATE_SHUTOFF, Instance.POWER_STATE_RUNNING
NAMES = {HERE: "host1", THERE: "host2", THIRD: "host3"}
SAME, OTHER = b"a" * 32, b"b" * 32
OLD, YOUNG = 7200.0, 60.0


def directory(
    role: str = "owner",
    *,
    host: str = HERE,
    epoch: int = 1,
    pool: str = "local",
    shared: bool = False,
    disk: bool = True,
    digest: bytes = b"",
    size: int = 1 << 30,
    damage: str = "",
) -> FoundDirectory:
    found = FoundDirectory(
        instance_id=VM, pool=pool, shared=shared, owner_host_id=host, epoch=epoch, role=role, damage=damage
    )
    found.files.add(kind=FoundFile.KIND_OTHER, path=f"instances/{VM}/config.img")
    if disk:
        found.files.add(
            kind=FoundFile.KIND_DISK, path=f"instances/{VM}/disk.qcow2", virtual_bytes=size, digest=digest
        )
    return found


def domain(epoch: int = 1, power: "Instance.PowerState.ValueType" = OFF) -> ObservedInstance:
    return ObservedInstance(instance_id=VM, epoch=epoch, power_state=power)


def home(digest: bytes = b"", *, epoch: int = 2, disk: bool = True, size: int = 1 << 30) -> SurveyResponse:
    """What the host on record shows: the copy of epoch 2."""
    return SurveyResponse(
        directories=[directory(host=THERE, epoch=epoch, disk=disk, digest=digest, size=size)],
        domains=[domain(epoch, RUNNING)],
    )


ELSEWHERE = Known(
    host_id=HERE, host_names=NAMES, records={VM: Recorded(host_id=THERE, epoch=2, pool="local")}
)
AT_HOME = replace(ELSEWHERE, records={VM: Recorded(host_id=HERE, epoch=1, pool="local")})
HELD = replace(ELSEWHERE, held={VM: "operations/1"})
OWED = replace(ELSEWHERE, owed={VM: "host1 owes source_released for it"})
UNKNOWN = Known(host_id=HERE, host_names=NAMES)
NO_HOST = replace(ELSEWHERE, records={VM: Recorded(host_id=HostId(""), epoch=0, pool="")})


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    fate: Fate
    says: str = ""
    found: FoundDirectory = field(default_factory=directory)
    known: Known = ELSEWHERE
    home: SurveyResponse | None = field(default_factory=home)
    active: bool = False
    compared: bool = False

    def __str__(self) -> str:
        return self.name


INCOMING = directory("incoming", epoch=3)
DIRECTORIES = (
    Case(name="the record names it", fate=Fate.NEEDED, known=AT_HOME),
    Case(
        name="the record names it, with a younger epoch",
        fate=Fate.NEEDED,
        known=AT_HOME,
        found=directory(epoch=0),
    ),
    Case(
        name="the record names it, damaged or not",
        fate=Fate.NEEDED,
        known=AT_HOME,
        found=directory(damage="x"),
    ),
    Case(
        name="on a shared pool, of the instance that another host runs on it",
        fate=Fate.NEEDED,
        found=directory(pool="shared", shared=True),
        known=replace(ELSEWHERE, records={VM: Recorded(host_id=THERE, epoch=2, pool="shared")}),
    ),
    Case(
        name="on a shared pool, by its owner.json of another host",
        fate=Fate.NEEDED,
        found=directory(host=THIRD, pool="shared", shared=True),
    ),
    Case(
        name="an operation works on the instance",
        fate=Fate.STAYS,
        says="operations/1",
        known=HELD,
        found=INCOMING,
    ),
    Case(
        name="a debt names the instance",
        fate=Fate.STAYS,
        says="host1 owes source_released",
        known=OWED,
        found=INCOMING,
    ),
    Case(
        name="its owner.json is damaged",
        fate=Fate.STAYS,
        says="cannot be read",
        found=directory(host="", damage="x"),
    ),
    Case(name="it has no owner.json", fate=Fate.STAYS, says="no owner.json", found=directory(host="")),
    Case(
        name="its owner.json names another host",
        fate=Fate.STAYS,
        says="names host3",
        found=directory(host=THIRD),
    ),
    Case(name="a guest is alive in it", fate=Fate.STAYS, says="reconcile", active=True, found=INCOMING),
    Case(name="no instance of that UUID", fate=Fate.STAYS, says="restored from a backup", known=UNKNOWN),
    Case(
        name="incoming, and no instance of that UUID",
        fate=Fate.STAYS,
        says="no such instance",
        known=UNKNOWN,
        found=INCOMING,
    ),
    Case(name="the instance is on no host", fate=Fate.STAYS, says="delete the instance", known=NO_HOST),
    Case(name="as old as the record", fate=Fate.STAYS, says="not older", found=directory(epoch=2)),
    Case(name="younger than the record", fate=Fate.STAYS, says="not older", found=directory(epoch=3)),
    Case(name="the host on record is silent", fate=Fate.STAYS, says="host2, which has the copy", home=None),
    Case(
        name="incoming, the host on record is silent",
        fate=Fate.STAYS,
        says="answer",
        home=None,
        found=INCOMING,
    ),
    Case(
        name="the copy on record was not seen",
        fate=Fate.STAYS,
        says="reconcile",
        home=SurveyResponse(),
        found=INCOMING,
    ),
    Case(
        name="the copy on record has no disk",
        fate=Fate.STAYS,
        says="reconcile",
        home=home(disk=False),
        found=INCOMING,
    ),
    Case(
        name="the copy there is of another epoch",
        fate=Fate.STAYS,
        says="reconcile",
        home=home(epoch=1),
        found=INCOMING,
    ),
    Case(name="incoming, of a move that failed", fate=Fate.REMOVABLE, says="epoch 3", found=INCOMING),
    Case(name="incoming, of a move long ago", fate=Fate.REMOVABLE, found=directory("incoming", epoch=1)),
    Case(
        name="released, without a disk",
        fate=Fate.REMOVABLE,
        says="holds no disk",
        found=directory(disk=False),
    ),
    Case(name="released, with a disk that nobody compared", fate=Fate.COMPARE),
    Case(
        name="the disk on record is in use",
        fate=Fate.STAYS,
        says="stop the instance",
        compared=True,
        found=directory(digest=SAME),
    ),
    Case(name="its own disk is in use", fate=Fate.STAYS, says="in use", compared=True, home=home(SAME)),
    Case(
        name="the disks differ",
        fate=Fate.STAYS,
        says="differs",
        compared=True,
        found=directory(digest=OTHER),
        home=home(SAME),
    ),
    Case(
        name="the disks differ in size",
        fate=Fate.STAYS,
        says="differs",
        compared=True,
        found=directory(digest=SAME, size=1 << 20),
        home=home(SAME),
    ),
    Case(
        name="the disks are equal",
        fate=Fate.REMOVABLE,
        says="the same as the one on host2",
        compared=True,
        found=directory(digest=SAME),
        home=home(SAME),
    ),
)


@pytest.mark.parametrize("case", DIRECTORIES, ids=str)
def test_a_directory_goes_only_when_nothing_needs_it_and_nothing_is_lost_with_it(case: Case) -> None:
    verdict = judge_directory(
        case.found, case.known, {VM: case.home}, active=case.active, compared=case.compared
    )
    assert verdict.fate is case.fate, verdict
    assert case.says in verdict.reason
    assert bool(verdict.reason) != (case.fate is Fate.NEEDED), "whatever is shown says why"


def test_whatever_the_store_and_the_hosts_say_a_disk_goes_only_if_an_equal_one_was_read() -> None:
    """The whole product of what can be told of a directory with a disk."""
    removable = 0
    for known in (ELSEWHERE, AT_HOME, HELD, OWED, UNKNOWN, NO_HOST):
        for mine in (b"", SAME, OTHER):
            for theirs in (None, SurveyResponse(), home(), home(SAME), home(SAME, epoch=1)):
                for active in (False, True):
                    for compared in (False, True):
                        found = directory(digest=mine)
                        verdict = judge_directory(
                            found, known, {VM: theirs}, active=active, compared=compared
                        )
                        if verdict.fate is Fate.REMOVABLE:
                            removable += 1
                            assert (known, mine, theirs, active, compared) == (
                                ELSEWHERE,
                                SAME,
                                home(SAME),
                                False,
                                True,
                            )
    assert removable == 1


@pytest.mark.parametrize(
    ("found", "known", "seen", "fate", "says"),
    [
        (domain(), AT_HOME, None, Fate.NEEDED, ""),
        (domain(1, RUNNING), AT_HOME, None, Fate.NEEDED, ""),
        (domain(0), AT_HOME, None, Fate.STAYS, "is not the record's 1"),
        (domain(1, RUNNING), ELSEWHERE, home(), Fate.STAYS, "never removed"),
        (domain(1, Instance.POWER_STATE_PAUSED), ELSEWHERE, home(), Fate.STAYS, "never removed"),
        (domain(), HELD, home(), Fate.STAYS, "operations/1"),
        (domain(), OWED, home(), Fate.STAYS, "owes"),
        (domain(), UNKNOWN, None, Fate.STAYS, "no such instance"),
        (domain(), NO_HOST, None, Fate.STAYS, "delete the instance"),
        (domain(2), ELSEWHERE, home(), Fate.STAYS, "reconcile"),
        (domain(3), ELSEWHERE, home(), Fate.STAYS, "reconcile"),
        (domain(), ELSEWHERE, None, Fate.STAYS, "does not answer"),
        (domain(), ELSEWHERE, SurveyResponse(), Fate.STAYS, "reconcile"),
        (domain(), ELSEWHERE, home(), Fate.REMOVABLE, "of epoch 2, is on host2"),
        (domain(1, Instance.POWER_STATE_CRASHED), ELSEWHERE, home(), Fate.REMOVABLE, "host2"),
    ],
)
def test_a_definition_goes_when_it_is_off_and_a_younger_copy_was_seen(
    found: ObservedInstance, known: Known, seen: SurveyResponse | None, fate: Fate, says: str
) -> None:
    verdict = judge_domain(found, known, {VM: seen})
    assert verdict.fate is fate, verdict
    assert says in verdict.reason


BASE = FoundFile(kind=FoundFile.KIND_BASE_IMAGE, pool="local", path=f"base/{'ab' * 32}.raw")
TEMPORARY = FoundFile(kind=FoundFile.KIND_TEMPORARY, pool="local", path=".remuda-probe-1")


def changed(found: FoundFile, **fields: object) -> FoundFile:
    copy = FoundFile()
    copy.CopyFrom(found)
    for name, value in fields.items():
        setattr(copy, name, value)
    return copy


@pytest.mark.parametrize(
    ("found", "known", "age", "fate", "says"),
    [
        (BASE, UNKNOWN, OLD, Fate.REMOVABLE, "fetched again"),
        (BASE, UNKNOWN, YOUNG, Fate.STAYS, "less than an hour"),
        (changed(BASE, in_use=True), UNKNOWN, OLD, Fate.NEEDED, ""),
        (BASE, replace(UNKNOWN, bases=frozenset({("local", "ab" * 32)})), OLD, Fate.NEEDED, ""),
        (BASE, replace(UNKNOWN, bases=frozenset({("fast", "ab" * 32)})), OLD, Fate.REMOVABLE, ""),
        (BASE, replace(UNKNOWN, shared_pools=frozenset({"local"})), OLD, Fate.STAYS, "other hosts"),
        (TEMPORARY, UNKNOWN, OLD, Fate.REMOVABLE, "probe"),
        (TEMPORARY, UNKNOWN, YOUNG, Fate.STAYS, "younger than an hour"),
        (changed(TEMPORARY, in_use=True), UNKNOWN, OLD, Fate.NEEDED, ""),
        (changed(TEMPORARY, kind=FoundFile.KIND_FOREIGN), UNKNOWN, OLD, Fate.STAYS, "by hand"),
        (
            changed(TEMPORARY, kind=FoundFile.KIND_FOREIGN, in_use=True),
            UNKNOWN,
            OLD,
            Fate.STAYS,
            "did not make",
        ),
        (changed(TEMPORARY, kind=FoundFile.KIND_DISK), UNKNOWN, OLD, Fate.STAYS, "never removed"),
    ],
)
def test_a_file_goes_when_it_is_old_unused_and_remudas(
    found: FoundFile, known: Known, age: float, fate: Fate, says: str
) -> None:
    verdict = judge_file(found, known, age_seconds=age)
    assert verdict.fate is fate, verdict
    assert says in verdict.reason
