"""What a caller is shown of an operation. Pure.

Owners of instances see the ids of the hosts that their own instances are on, and nothing else of hosts:
neither how they are called, nor what they have left, which placement explains host by host.
"""

from google.longrunning.operations_pb2 import Operation
from google.rpc.status_pb2 import Status
from remuda.compute.v1.migration_pb2 import Migration
from remuda.compute.v1.moving_pb2 import CheckMigrationResponse, MigrationCandidate, MigrationCheck
from remuda.compute.v1.operation_pb2 import OperationMetadata
from remuda_core.auth.caller import Caller
from remuda_core.migration.preflight import without_hosts
from remuda_core.rpc.status import from_status, request_id_of, to_status

from remuda_api.store.operations import packed


def shown_to(caller: Caller, operation: Operation) -> Operation:
    """The operation itself, or a copy that explains placement and preflight by counts and conditions only."""
    if caller.sees_hosts:
        return operation
    metadata = OperationMetadata()
    if not operation.metadata.Unpack(metadata) or not _tells_of_hosts(operation, metadata):
        return operation
    if metadata.HasField("placement"):
        del metadata.placement.hosts[:]
        metadata.placement.chosen_host = ""
    if metadata.HasField("preflight"):
        metadata.preflight.CopyFrom(_nameless(metadata.preflight))
    for step in metadata.steps:
        if step.HasField("error"):
            step.error.CopyFrom(_without_hosts(step.error))
    shown = Operation()
    shown.CopyFrom(operation)
    shown.metadata.CopyFrom(packed(metadata))
    if shown.HasField("error"):
        shown.error.CopyFrom(_without_hosts(operation.error))
    return shown


def migration_shown_to(caller: Caller, migration: Migration) -> Migration:
    if caller.sees_hosts or not migration.HasField("error"):
        return migration
    shown = Migration()
    shown.CopyFrom(migration)
    shown.error.CopyFrom(_without_hosts(migration.error))
    return shown


def _tells_of_hosts(operation: Operation, metadata: OperationMetadata) -> bool:
    failed = operation.HasField("error") or any(step.HasField("error") for step in metadata.steps)
    return failed or metadata.HasField("placement") or metadata.HasField("preflight")


def _without_hosts(status: Status) -> Status:
    error = from_status(status)
    told = without_hosts(error)
    return status if told is error else to_status(told, request_id=request_id_of(status))


def check_shown_to(caller: Caller, checked: CheckMigrationResponse) -> CheckMigrationResponse:
    """The whole table, or one that says of each host only what came of each condition."""
    if caller.sees_hosts:
        return checked
    return CheckMigrationResponse(
        source_host=checked.source_host, candidates=[_nameless(one) for one in checked.candidates]
    )


def _nameless(candidate: MigrationCandidate) -> MigrationCandidate:
    # What was observed, is needed and would help all speak of addresses, pools and versions.
    checks = [
        MigrationCheck(
            condition=check.condition,
            verdict=check.verdict,
            duration_ms=check.duration_ms,
            check_time=check.check_time if check.HasField("check_time") else None,
        )
        for check in candidate.checks
    ]
    shown = MigrationCandidate(
        kind=candidate.kind, verdict=candidate.verdict, checks=checks, probed=candidate.probed
    )
    if candidate.HasField("expected_duration"):
        shown.expected_duration.CopyFrom(candidate.expected_duration)
    return shown
