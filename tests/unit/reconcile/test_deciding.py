"""What reconciling decides, case by case, and what it never does whatever is found."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from remuda.agent.v1.agent_pb2 import FoundDirectory, FoundFile
from remuda.compute.v1.instance_pb2 import Instance
from remuda.compute.v1.reconcile_pb2 import Repair
from remuda.scheduler.v1.registry_pb2 import ObservedInstance
from remuda_core.ids import HostId
from remuda_core.lifecycle import STATES, State, state_name
from remuda_scheduler.reconcile.deciding import Copy, Intended, decide
from remuda_scheduler.reconcile.finding import Found
from remuda_scheduler.reconcile.reporting import report_of

HOME, OTHER = HostId("home"), HostId("other")
RUNNING, PAUSED = Instance.POWER_STATE_RUNNING, Instance.POWER_STATE_PAUSED
OFF, CRASHED = Instance.POWER_STATE_SHUTOFF, Instance.POWER_STATE_CRASHED
RECORD = Intended(host_id=HOME, epoch=2, pool="local", state=Instance.STATE_RUNNING)
STOPPED = replace(RECORD, state=Instance.STATE_STOPPED, runs=False)
SHARED = replace(RECORD, pool="shared")


def domain(
    power: "Instance.PowerState.ValueType" = RUNNING,
    *,
    epoch: int = 2,
    reason: str = "booted",
    persistent: bool = True,
    job: "ObservedInstance.Job.ValueType" = ObservedInstance.JOB_UNSPECIFIED,
) -> ObservedInstance:
    return ObservedInstance(
        instance_id="vm", epoch=epoch, power_state=power, reason=reason, persistent=persistent, job=job
    )


def files(
    *names: str, pool: str = "local", host: str = HOME, epoch: int = 2, uid: str = "", damage: str = ""
) -> FoundDirectory:
    found = FoundDirectory(
        instance_id="vm",
        pool=pool,
        shared=pool == "shared",
        pool_uid=uid or ("nfs" if pool == "shared" else f"local-{host}"),
        owner_host_id=host,
        epoch=epoch,
        role="owner",
        damage=damage,
    )
    for name in names or ("config.img", "disk.qcow2"):
        kind = FoundFile.KIND_DISK if name.startswith("disk") else FoundFile.KIND_OTHER
        found.files.add(kind=kind, pool=pool, path=f"instances/vm/{name}")
    return found


WHOLE = files()
SHARED_FILES = files(pool="shared")


def home(seen: ObservedInstance | None, *directories: FoundDirectory, foreign: Sequence[str] = ()) -> Copy:
    return Copy(host_id=HOME, name="host1", domain=seen, directories=directories or (WHOLE,), foreign=foreign)


def stray(seen: ObservedInstance | None, *directories: FoundDirectory, foreign: Sequence[str] = ()) -> Copy:
    return Copy(host_id=OTHER, name="host2", domain=seen, directories=directories, foreign=foreign)


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    copies: tuple[Copy, ...]
    expected: tuple[str, ...]
    record: Intended = RECORD
    state: str = "UNSPECIFIED"
    says: str = ""
    silent: tuple[HostId, ...] = ()

    def __str__(self) -> str:
        return self.name


AWAY = files("config.img")
CASES = (
    Case(name="all is well", copies=(home(domain()),), expected=(), state="RUNNING"),
    Case(
        name="all is well, and off as wanted",
        record=STOPPED,
        copies=(home(domain(OFF)),),
        expected=(),
        state="STOPPED",
    ),
    Case(name="destroyed", copies=(home(domain(OFF)),), expected=("START home",), state="RUNNING"),
    Case(name="crashed", copies=(home(domain(CRASHED)),), expected=("START home",), state="RUNNING"),
    Case(
        name="destroyed, and the record knows",
        record=replace(RECORD, state=Instance.STATE_STOPPED),
        copies=(home(domain(OFF)),),
        expected=("START home", "RECORD"),
        state="RUNNING",
        says="the record says STOPPED; it is then RUNNING",
    ),
    Case(
        name="off, wanted off, and FAILED by record",
        record=replace(STOPPED, state=Instance.STATE_FAILED),
        copies=(home(domain(OFF)),),
        expected=("RECORD",),
        state="STOPPED",
    ),
    Case(
        name="undefined and off",
        copies=(home(None),),
        expected=("DEFINE home", "START home"),
        state="RUNNING",
    ),
    Case(
        name="undefined and wanted off",
        record=STOPPED,
        copies=(home(None),),
        expected=("DEFINE home",),
        state="STOPPED",
    ),
    Case(
        name="undefined while it runs",
        copies=(home(domain(persistent=False)),),
        expected=("DEFINE home",),
        state="RUNNING",
        says="what runs is not touched",
    ),
    Case(
        name="defined from an old file",
        copies=(home(domain(OFF, epoch=1)),),
        expected=("DEFINE home", "START home"),
        state="RUNNING",
    ),
    Case(
        name="a younger definition than the record",
        copies=(home(domain(OFF, epoch=3)),),
        expected=("ASK_OPERATOR home",),
        says="restored from a backup",
    ),
    Case(
        name="what runs is not of the record's epoch",
        copies=(home(domain(epoch=1)), stray(domain())),
        expected=("ASK_OPERATOR home",),
    ),
    Case(
        name="started by hand although it shall be off",
        record=STOPPED,
        copies=(home(domain()),),
        expected=("RECORD",),
        state="RUNNING",
    ),
    Case(
        name="paused by hand",
        copies=(home(domain(PAUSED)),),
        expected=("RECORD",),
        state="PAUSED",
        says="it is then PAUSED",
    ),
    Case(
        name="the disk is gone",
        copies=(home(domain(OFF), AWAY),),
        expected=("ASK_OPERATOR home", "RECORD"),
        state="FAILED",
        says="its disk is not in pool local of host1, nor anywhere else",
    ),
    Case(
        name="the disk is gone, and the record says so already",
        record=replace(
            RECORD,
            state=Instance.STATE_FAILED,
            message="its disk is not in pool local of host1, nor anywhere else",
        ),
        copies=(home(domain(OFF), AWAY),),
        expected=("ASK_OPERATOR home",),
        state="FAILED",
    ),
    Case(
        name="the disk has another name",
        copies=(home(domain(OFF), files("config.img", "disk.qcow2.bak")),),
        expected=("ASK_OPERATOR home", "RECORD"),
        state="FAILED",
        says="found: local/instances/vm/disk.qcow2.bak on host1. Move it back",
    ),
    Case(
        name="the disk is on another host",
        copies=(home(domain(OFF), AWAY), stray(None, files(host=OTHER))),
        expected=("ASK_OPERATOR home", "RECORD"),
        state="FAILED",
        says="found: local/instances/vm on host2",
    ),
    Case(
        name="the disk is on another pool",
        copies=(home(None, AWAY, SHARED_FILES),),
        expected=("ASK_OPERATOR home", "RECORD"),
        state="FAILED",
        says="found: shared/instances/vm on host1",
    ),
    Case(
        name="the directory was renamed",
        copies=(Copy(host_id=HOME, name="host1", foreign=("local/instances/vm.away",)),),
        expected=("ASK_OPERATOR home", "RECORD"),
        state="FAILED",
        says="its directory is not in pool local of host1; found: local/instances/vm.away on host1",
    ),
    Case(
        name="nothing is left of it",
        copies=(),
        expected=("ASK_OPERATOR home", "RECORD"),
        state="FAILED",
        says="nor anywhere else",
    ),
    Case(
        name="the disk is gone below a guest that runs",
        copies=(home(domain(), AWAY),),
        expected=("ASK_OPERATOR home",),
        state="RUNNING",
        says="as long as it is not switched off",
    ),
    Case(
        name="the config drive is gone",
        copies=(home(None, files("disk.qcow2")),),
        expected=("ASK_OPERATOR home", "RECORD"),
        state="FAILED",
        says="config drive",
    ),
    Case(
        name="the directory is another host's",
        copies=(home(None, files(host=OTHER)),),
        expected=("ASK_OPERATOR home", "RECORD"),
        state="FAILED",
        says="belongs to host other",
    ),
    Case(
        name="the owner record is damaged",
        copies=(home(None, files(host="", damage="no JSON")),),
        expected=("ASK_OPERATOR home", "RECORD"),
        state="FAILED",
        says="no JSON",
    ),
    Case(
        name="a second copy runs",
        copies=(home(domain()), stray(domain())),
        expected=("PAUSE_STRAY other",),
        state="RUNNING",
        says="never destroyed",
    ),
    Case(
        name="a second copy runs beside a paused one",
        record=replace(RECORD, state=Instance.STATE_PAUSED),
        copies=(home(domain(PAUSED)), stray(domain())),
        expected=("PAUSE_STRAY other",),
        state="PAUSED",
    ),
    Case(
        name="a second copy is paused",
        copies=(home(domain()), stray(domain(PAUSED))),
        expected=("ASK_OPERATOR other",),
        state="RUNNING",
        says="by hand",
    ),
    Case(
        name="a second definition is off",
        copies=(home(domain()), stray(domain(OFF))),
        expected=("REMOVE_STRAY other",),
        state="RUNNING",
        says="Files are left alone",
    ),
    Case(
        name="destroyed, and defined elsewhere",
        copies=(home(domain(OFF)), stray(domain(OFF))),
        expected=("REMOVE_STRAY other", "START home"),
        state="RUNNING",
    ),
    Case(
        name="the disk is gone, and a definition is elsewhere",
        copies=(home(domain(OFF), AWAY), stray(domain(OFF))),
        expected=("ASK_OPERATOR home", "RECORD"),
        state="FAILED",
    ),
    Case(
        name="started elsewhere on the same disk",
        record=SHARED,
        copies=(home(domain(OFF), SHARED_FILES), stray(domain(), SHARED_FILES)),
        expected=("ASK_OPERATOR other", "RECORD"),
        state="FAILED",
        says="on the same disk",
    ),
    Case(
        name="started elsewhere on a copied disk",
        copies=(home(domain(OFF)), stray(domain(), files(host=OTHER))),
        expected=("ASK_OPERATOR other", "RECORD"),
        state="FAILED",
        says="is then not in the disk on record",
    ),
    Case(
        name="paused elsewhere while it is off at home",
        copies=(home(None), stray(domain(PAUSED))),
        expected=("ASK_OPERATOR other", "RECORD"),
        state="FAILED",
    ),
    Case(
        name="migrated by hand just now",
        copies=(
            home(domain(job=ObservedInstance.JOB_MIGRATION_OUT)),
            stray(domain(PAUSED, job=ObservedInstance.JOB_MIGRATION_IN)),
        ),
        expected=("ASK_OPERATOR home", "ASK_OPERATOR other"),
        says="wait for its end",
    ),
    Case(
        name="left in post-copy",
        copies=(home(domain(PAUSED, reason="postcopy_failed")), stray(domain(reason="postcopy"))),
        expected=("ASK_OPERATOR home", "ASK_OPERATOR other"),
        says="split over two hosts",
    ),
    Case(
        name="its host is silent",
        silent=(HOME,),
        copies=(stray(domain()),),
        expected=("ASK_OPERATOR home",),
        says="does not answer",
    ),
    Case(
        name="another host is silent",
        silent=(OTHER,),
        copies=(home(domain(OFF)),),
        expected=("START home",),
        state="RUNNING",
    ),
    Case(
        name="it is on no host",
        record=replace(RECORD, host_id=HostId(""), state=Instance.STATE_FAILED),
        copies=(stray(domain(OFF)),),
        expected=("ASK_OPERATOR other",),
        says="delete the instance",
    ),
    Case(
        name="it is to be deleted",
        record=replace(RECORD, state=Instance.STATE_DELETING),
        copies=(home(domain(OFF)),),
        expected=("ASK_OPERATOR",),
        says="delete it again",
    ),
    Case(
        name="suspended stays suspended",
        record=replace(RECORD, state=Instance.STATE_SUSPENDED),
        copies=(home(domain(OFF)),),
        expected=(),
    ),
    Case(
        name="shelved, and undefined",
        record=replace(RECORD, state=Instance.STATE_RESIZED),
        copies=(home(None),),
        expected=("DEFINE home",),
    ),
)


def words(repairs: Sequence[Repair]) -> tuple[str, ...]:
    return tuple(
        f"{Repair.Action.Name(one.action).removeprefix('ACTION_')} {one.host.rpartition('/')[2]}".strip()
        for one in repairs
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_decides_what_the_table_says(case: Case) -> None:
    decision = decide(case.record, case.copies, case.silent)
    assert words(decision.repairs) == case.expected
    assert Instance.State.Name(decision.state) == f"STATE_{case.state}"
    assert case.says in " ".join(one.reason for one in decision.repairs)
    assert all(one.reason for one in decision.repairs)
    assert (decision.state == Instance.STATE_FAILED) == bool(decision.message)


DOMAINS = (
    None,
    *(
        domain(power, epoch=epoch, reason=reason, persistent=persistent, job=job)
        for power, epoch, reason, persistent, job in itertools.product(
            (RUNNING, PAUSED, OFF),
            (1, 2, 3),
            ("booted", "postcopy"),
            (True, False),
            (ObservedInstance.JOB_UNSPECIFIED, ObservedInstance.JOB_MIGRATION_OUT),
        )
    ),
)
FILES = ((), (WHOLE,), (AWAY,), (SHARED_FILES,))
INTENDED = [
    replace(RECORD, state=state, runs=runs, pool=pool)
    for state, runs, pool in itertools.product(STATES, (True, False), ("local", "shared"))
]


@pytest.mark.parametrize("state", STATES, ids=state_name)
def test_whatever_is_found_nothing_is_started_beside_a_living_copy_or_without_its_disk(state: State) -> None:
    """The whole product: record, own domain and files, a stray's domain."""
    for record in (one for one in INTENDED if one.state == state):
        for own, lying, second in itertools.product(DOMAINS, FILES, DOMAINS):
            copies = [Copy(host_id=HOME, name="host1", domain=own, directories=lying), stray(second)]
            decision = decide(record, copies, ())
            done = words(decision.repairs)
            alive = second is not None and second.power_state in (RUNNING, PAUSED)
            if "START home" in done:
                assert record.runs
                assert not alive
                assert any(one.pool == record.pool and one is not AWAY for one in lying)
                assert own is None or own.power_state == OFF
            if "PAUSE_STRAY other" in done:
                assert copies[0].active
                assert second is not None
                assert second.power_state == RUNNING
                assert "postcopy" not in (second.reason, own.reason if own else "")
            if "REMOVE_STRAY other" in done:
                assert not alive
                assert own is not None or lying
            if own is not None and own.power_state in (RUNNING, PAUSED):
                assert decision.state not in (Instance.STATE_STOPPED, Instance.STATE_FAILED)


def test_a_report_tells_it_all_in_lines_for_people() -> None:
    found = Found(
        copies=[
            home(domain(OFF, reason="destroyed"), AWAY, foreign=("local/instances/vm.away",)),
            stray(domain(job=ObservedInstance.JOB_OTHER, persistent=False), SHARED_FILES),
        ],
        silent=[HostId("gone")],
    )
    report = report_of(RECORD, found, decide(RECORD, found.copies, found.silent))
    assert report.intended == "RUNNING, shall run; on host1, pool local, epoch 2"
    assert [(copy.host, copy.epoch, copy.on_record, copy.domain, copy.files) for copy in report.found] == [
        (
            "hosts/home",
            2,
            True,
            "SHUTOFF (destroyed)",
            "local: config.img, owner of epoch 2; local/instances/vm.away: not Remuda's",
        ),
        (
            "hosts/other",
            2,
            False,
            "RUNNING (booted), job other, without a definition",
            "shared (shared): config.img, disk.qcow2, owner of epoch 2",
        ),
    ]
    assert list(report.silent_hosts) == ["hosts/gone"]


def test_a_report_has_an_end_however_much_was_found() -> None:
    copies = [home(domain())] + [
        Copy(host_id=HostId(f"{number}" * 36), name="x" * 300, domain=domain(), foreign=("y" * 4000,))
        for number in range(2000)
    ]
    found = Found(copies=copies, silent=[HostId("z" * 36)] * 5000)
    report = report_of(RECORD, found, decide(RECORD, found.copies, found.silent))
    assert report.ByteSize() < 1 << 20
    assert len(report.found) == 100
