"""Which running move a person means: by the instance, or by the migration."""

from dataclasses import dataclass

from google.longrunning import operations_pb2

from remuda_cli import resolve
from remuda_cli.exit_codes import ExitCode
from remuda_cli.failure import Failure
from remuda_cli.gateway import Gateway
from remuda_cli.output.columns import operation_metadata
from remuda_cli.output.words import last_part

_ACTION = "LiveMigrateInstance"


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    operation: str
    """operations/{id}"""
    migration: str
    """Full name; empty while no target is chosen."""
    subject: str
    """What people call the instance."""


def find(gateway: Gateway, given: str) -> Move:
    """Raises Failure: not found, or CONFLICT for an instance that is not being moved."""
    if "/migrations/" in given:
        return _of_migration(gateway, given)
    try:
        instance = resolve.instance(gateway, given)
    except Failure as failure:
        if failure.exit_code is not ExitCode.NOT_FOUND:
            raise
        try:
            return _of_migration(gateway, given)
        except Failure as other:
            # "No such instance" says more: that is what most people name.
            raise (failure if other.exit_code is ExitCode.NOT_FOUND else other) from None
    if not instance.operation:
        raise _not_moving(instance.display_name)
    request = operations_pb2.GetOperationRequest(name=instance.operation)
    metadata = operation_metadata(gateway.call(gateway.operations.GetOperation, request))
    if metadata.action != _ACTION:
        raise _not_moving(instance.display_name, metadata.action)
    return Move(operation=instance.operation, migration=metadata.migration, subject=instance.display_name)


def require_begun(move: Move) -> str:
    """The migration's name. Raises Failure CONFLICT while the move waits for its turn or for a target."""
    if move.migration:
        return move.migration
    raise Failure(
        ExitCode.CONFLICT,
        f"the move of {move.subject} has not begun: there is nothing to steer but cancel",
        hints=(
            f"remuda operation watch {last_part(move.operation)}",
            f"remuda migration cancel {move.subject}",
        ),
    )


def _of_migration(gateway: Gateway, given: str) -> Move:
    migration = resolve.migration(gateway, given)
    return Move(
        operation=migration.operation, migration=migration.name, subject=migration.name.split("/")[3][:8]
    )


def _not_moving(instance: str, action: str = "") -> Failure:
    instead = f"; {action} goes on with it" if action else ""
    return Failure(
        ExitCode.CONFLICT,
        f"{instance} is not being moved{instead}",
        hints=(f"remuda instance live-migrate {instance}", f"remuda migration list {instance}"),
    )
