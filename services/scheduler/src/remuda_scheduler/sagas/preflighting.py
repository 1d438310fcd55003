"""The step `preflight_passed`: a target for which every condition holds, or the reasons why there is none.

Nothing has been touched when it fails, and it touches nothing: probes clean up behind themselves. It is done
again for every further target, because what was seen before the try before may be long ago, and for the
chosen one when its turn was long in coming.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from math import inf

from remuda.compute.v1.migration_pb2 import Migration
from remuda.compute.v1.moving_pb2 import MigrationCandidate
from remuda.compute.v1.operation_pb2 import PlacementExplanation
from remuda.store.v1.saga_pb2 import LiveMigrateState
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId
from remuda_core.migration.preflight import explanation, passed, preflight_failed, refusals
from remuda_core.names import host_name
from remuda_core.rpc.status import from_status

from remuda_scheduler.engine.run import Run
from remuda_scheduler.placement.explain import explain
from remuda_scheduler.ports import NothingFits, PlacementRequest
from remuda_scheduler.preflight.asking import move_of
from remuda_scheduler.preflight.service import Checked, Wanted
from remuda_scheduler.sagas.migration_record import request_of
from remuda_scheduler.sagas.placing import indebted, resolve_host

_Run = Run[LiveMigrateState]

FILTER = "preflight"
"""Beside the names of placement's filters, in the operation's explanation."""


async def pass_preflight(run: _Run) -> None:
    """Raises PREFLIGHT_FAILED; NO_HOST_FITS when no host was worth a probe; and when a target was tried
    before and there is no other, why that one failed.
    """
    run.state.target_host_id = ""
    checked = await run.services.preflight.check(await _wanted(run))
    probed = [one for one in checked.candidates if one.probed]
    chosen = next((one for one in probed if passed(one)), None)
    run.metadata.placement.CopyFrom(_explained(checked, chosen))
    best = chosen or next(iter(checked.candidates), None)
    if best is not None:
        run.metadata.preflight.CopyFrom(best)
    if chosen is None:
        raise _refusal(run, checked.candidates, probed)
    _remember(run, chosen)


async def still_passes(run: _Run) -> None:
    """Checks the chosen target again when what was seen of it is too old to begin on. Raises
    PREFLIGHT_FAILED.
    """
    if _age_seconds(run) < run.services.timing.preflight_valid:
        return
    wanted = await _wanted(run)
    only = replace(wanted.placement, host_id=HostId(run.state.target_host_id))
    checked = await run.services.preflight.check(replace(wanted, placement=only))
    # What placement thought of all hosts stays with the operation: this was about one.
    for candidate in checked.candidates:
        run.metadata.preflight.CopyFrom(candidate)
    chosen = next((one for one in checked.candidates if passed(one)), None)
    if chosen is None:
        raise preflight_failed(checked.candidates)
    _remember(run, chosen)


def _age_seconds(run: _Run) -> float:
    """Of the oldest that was seen: an earlier probe may have been used again."""
    seen = [check.check_time.ToDatetime(tzinfo=UTC) for check in run.metadata.preflight.checks]
    return (datetime.now(UTC) - min(seen)).total_seconds() if seen else inf


async def _wanted(run: _Run) -> Wanted:
    record, status = await run.instance()
    request = request_of(run)
    return Wanted(
        instance=run.instance_id,
        placement=_placement(run, move_of(record, status, target=None, excluded={})),
        image_id=record.image_id,
        manifest_digest=record.manifest_digest,
        allow_version_skew=request.allow_version_skew,
        max_downtime_ms=request.max_downtime_ms,
        bandwidth_mib_s=request.bandwidth_mib_s,
    )


def _placement(run: _Run, move: PlacementRequest) -> PlacementRequest:
    source = HostId(run.state.source_host_id)
    return PlacementRequest(
        vcpus=move.vcpus,
        memory_mib=move.memory_mib,
        disk_bytes=move.disk_bytes,
        networks=move.networks,
        host_id=resolve_host(run, request_of(run).target_host),
        excluded={**indebted(run), **tried(run), source: "it is the source"},
        source_host_id=source,
        source_pool=run.state.source_pool,
        machine_type=move.machine_type,
    )


def tried(run: _Run) -> dict[HostId, str]:
    """Targets of this operation that did not work out, and why."""
    known = run.state.refusals
    return {
        HostId(host): f"it was tried in vain: {known.get(host) or 'the logs say why'}"
        for host in run.state.refused_host_ids
    }


def _remember(run: _Run, chosen: MigrationCandidate) -> None:
    state = run.state
    state.target_host_id = chosen.host.removeprefix("hosts/")
    # The disks keep their pool, by name and, where it is shared, by what was seen there.
    state.target_pool = state.source_pool
    state.kind = chosen.kind
    # The only ground for VIR_MIGRATE_UNSAFE: a file that one host wrote was read by the other.
    state.shared_disks = chosen.kind == Migration.KIND_LIVE_SHARED


def _refusal(
    run: _Run, candidates: Sequence[MigrationCandidate], probed: Sequence[MigrationCandidate]
) -> RemudaError:
    if request_of(run).target_host:
        return preflight_failed(candidates)
    if run.state.HasField("refusal"):
        # Why the target that passed refused says more than that there are no others.
        return from_status(run.state.refusal)
    if not probed:
        return RemudaError(Reason.NO_HOST_FITS, str(NothingFits(run.metadata.placement)))
    return preflight_failed(probed)


def _explained(checked: Checked, chosen: MigrationCandidate | None) -> PlacementExplanation:
    """Placement's view of all hosts, with what the probes made of the best of them."""
    found = explain(checked.plan)
    found.chosen_host = chosen.host if chosen is not None else ""
    refused = {one.host: one for one in checked.candidates if one.probed and not passed(one)}
    for verdict in found.hosts:
        candidate = refused.get(verdict.host)
        if candidate is not None and verdict.eligible:
            verdict.eligible, verdict.filter = False, FILTER
            verdict.reason = " ".join(explanation(check) for check in refusals(candidate))[:2048]
    unfit = sum(
        verdict.eligible and host_name(verdict.host.id) in refused for verdict in checked.plan.verdicts
    )
    if unfit:
        found.rejections[FILTER] = unfit
    return found
