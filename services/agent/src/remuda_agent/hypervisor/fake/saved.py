"""The fake world as JSON, so that it outlives the process and is shared by several agents' processes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from remuda_core.ids import InstanceId

from remuda_agent.hypervisor.fake.world import (
    FakeDomain,
    FakeHost,
    FakeJob,
    FakeTimings,
    JobResult,
    ToldEvent,
    World,
    WorldEvent,
)
from remuda_agent.hypervisor.model import (
    CompletedMigration,
    DomainDescription,
    DomainNic,
    EventKind,
    MigrationRequest,
)


def dump(world: World) -> str:
    """Events too: those of one process are news for the others."""
    return json.dumps(
        {
            "hosts": {name: dataclasses.asdict(host) for name, host in world.hosts.items()},
            "jobs": [dataclasses.asdict(job) for job in world.jobs.values()],
            "results": {number: dataclasses.asdict(result) for number, result in world.results.items()},
            "stopping": sorted(world.stopping),
            "next_job": world.next_job,
            "told": [dataclasses.asdict(told) for told in world.told],
            "next_event": world.next_event,
        },
        default=str,  # paths
    )


def load(text: str) -> World:
    """What `dump` wrote."""
    raw = json.loads(text)
    return World(
        hosts={name: _host(host) for name, host in raw["hosts"].items()},
        jobs={job["number"]: _job(job) for job in raw["jobs"]},
        results={int(number): _result(result) for number, result in raw["results"].items()},
        stopping={(host, InstanceId(instance)) for host, instance in raw["stopping"]},
        next_job=raw["next_job"],
        told=[_told(told) for told in raw["told"]],
        next_event=raw["next_event"],
    )


def _told(raw: dict[str, Any]) -> ToldEvent:
    event = raw["event"]
    return ToldEvent(
        number=raw["number"],
        event=WorldEvent(
            host=event["host"],
            kind=EventKind(event["kind"]),
            instance_id=InstanceId(event["instance_id"]),
            detail=event["detail"],
        ),
        time=raw["time"],
    )


def _host(raw: dict[str, Any]) -> FakeHost:
    domains = {InstanceId(key): _domain(value) for key, value in raw["domains"].items()}
    return FakeHost(**{**raw, "domains": domains})


def _domain(raw: dict[str, Any]) -> FakeDomain:
    return FakeDomain(
        **{
            **raw,
            "definition": _description(raw["definition"]),
            "live": _description(raw["live"]),
            "completed": _completed(raw["completed"]),
        }
    )


def _description(raw: dict[str, Any] | None) -> DomainDescription | None:
    if raw is None:
        return None
    paths = {key: Path(raw[key]) for key in ("disk", "config_drive", "console")}
    return DomainDescription(**{**raw, **paths, "nics": tuple(DomainNic(**nic) for nic in raw["nics"])})


def _completed(raw: dict[str, Any] | None) -> CompletedMigration | None:
    return None if raw is None else CompletedMigration(**raw)


def _job(raw: dict[str, Any]) -> FakeJob:
    return FakeJob(
        **{**raw, "request": MigrationRequest(**raw["request"]), "timings": FakeTimings(**raw["timings"])}
    )


def _result(raw: dict[str, Any]) -> JobResult:
    return JobResult(**{**raw, "completed": _completed(raw["completed"])})
