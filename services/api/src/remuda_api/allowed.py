"""ListAllowedActions: the state table, applied to one instance. Pure."""

from remuda.compute.v1 import instance_pb2 as pb
from remuda_core import lifecycle
from remuda_core.auth.policy import POLICY
from remuda_core.errors import instance_busy, permission_denied
from remuda_core.lifecycle import Action
from remuda_core.rpc.status import to_status

_SERVICE = pb.DESCRIPTOR.services_by_name["InstanceService"]
_SERVED = {method.name for method in _SERVICE.methods}


def allowed_actions(instance: pb.Instance, *, held_by: str, admin: bool = True) -> list[pb.AllowedAction]:
    """Those of the table that this gateway serves; `held_by` names the operation that holds it, if any."""
    found = []
    for action in lifecycle.TABLE:
        if action is Action.CREATE or action.rpc not in _SERVED:
            continue
        already = action is not Action.DELETE and lifecycle.holds_already(action, instance.state)
        if already:
            refusal = instance_busy(instance.name, held_by) if held_by else None
        else:
            refusal = lifecycle.check(action, instance.state, instance=instance.name, held_by=held_by)
        if POLICY[f"/{_SERVICE.full_name}/{action.rpc}"].admin and not admin:
            refusal = permission_denied(f"{action.rpc} needs the admin role", method=action.rpc, role="admin")
        entry = pb.AllowedAction(action=action.rpc, allowed=refusal is None)
        if refusal is not None:
            entry.refusal.CopyFrom(to_status(refusal))
        found.append(entry)
    return found
