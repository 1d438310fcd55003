"""What was compared, in words for people. Pure."""

from collections.abc import Sequence

from remuda.agent.v1.agent_pb2 import FoundDirectory
from remuda.compute.v1.instance_pb2 import Instance
from remuda.compute.v1.reconcile_pb2 import FoundCopy, ReconcileReport
from remuda.scheduler.v1.registry_pb2 import ObservedInstance
from remuda_core.lifecycle import state_name
from remuda_core.names import host_name

from remuda_scheduler.reconcile.deciding import Copy, Decision, Intended
from remuda_scheduler.reconcile.finding import Found

MOST_COPIES = 100
MOST_SILENT = 1000
LONGEST = 1000
"""Characters of a sentence: the report stands in the operation, and etcd bounds that."""


def report_of(intended: Intended, found: Found, decision: Decision) -> ReconcileReport:
    report = ReconcileReport(
        intended=_intended(intended, {copy.host_id: copy.name for copy in found.copies}),
        found=[_copy(copy, intended) for copy in found.copies[:MOST_COPIES]],
        repairs=decision.repairs[: 3 * MOST_COPIES],
        silent_hosts=[host_name(host) for host in found.silent[:MOST_SILENT]],
    )
    for repair in report.repairs:
        repair.reason = repair.reason[:LONGEST]
    return report


def _intended(intended: Intended, names: dict[str, str]) -> str:
    wanted = "shall run" if intended.runs else "shall be off"
    said = f"{state_name(intended.state)}, {wanted}"
    if not intended.host_id:
        return f"{said}; on no host"
    host = names.get(intended.host_id) or host_name(intended.host_id)
    return f"{said}; on {host}, pool {intended.pool}, epoch {intended.epoch}"


def _copy(copy: Copy, intended: Intended) -> FoundCopy:
    files = [_directory(one) for one in copy.directories] + [f"{path}: not Remuda's" for path in copy.foreign]
    return FoundCopy(
        host=host_name(copy.host_id),
        epoch=copy.domain.epoch if copy.domain is not None else 0,
        domain=_domain(copy.domain) if copy.domain is not None else "none",
        files="; ".join(files)[:LONGEST],
        on_record=copy.host_id == intended.host_id,
    )


def _domain(seen: ObservedInstance) -> str:
    power = Instance.PowerState.Name(seen.power_state).removeprefix("POWER_STATE_")
    job = ObservedInstance.Job.Name(seen.job).removeprefix("JOB_").lower()
    words = [f"{power} ({seen.reason})" if seen.reason else power]
    words += [] if seen.job == ObservedInstance.JOB_UNSPECIFIED else [f"job {job}"]
    words += [] if seen.persistent else ["without a definition"]
    return ", ".join(words)


def _directory(one: FoundDirectory) -> str:
    names: Sequence[str] = sorted(file.path.rpartition("/")[2] for file in one.files)
    whose = f"{one.role} of epoch {one.epoch}" if one.owner_host_id else "no owner.json"
    shared = " (shared)" if one.shared else ""
    return f"{one.pool}{shared}: {', '.join(names) or 'empty'}, {one.damage or whose}"
