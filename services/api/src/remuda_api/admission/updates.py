"""UpdateInstance: what the owner may change at once, without an operation."""

from collections.abc import Sequence

from remuda.compute.v1 import instance_pb2 as public
from remuda.store.v1 import instance_pb2 as records
from remuda_core import names
from remuda_core.errors import (
    Reason,
    RemudaError,
    Violation,
    already_exists,
    invalid_argument,
    not_found,
)
from remuda_core.etcd import ops
from remuda_core.etcd.cache import Entry
from remuda_core.ids import InstanceId
from remuda_core.names import InstanceName

from remuda_api.admission.etags import check_etag
from remuda_api.admission.labels import changed_labels, check_labels, is_label_path
from remuda_api.admission.mutations import Answer, Mutations, Plan
from remuda_api.admission.requests import Call
from remuda_api.admission.resolving import Resolver, check_display_name
from remuda_api.store.instances import instance_message

_FIELDS = frozenset({"display_name", "labels"})
_ALL_FIELDS = "*"
_MOST_PATHS = 128


class UpdateAdmission:
    def __init__(self, mutations: Mutations, resolver: Resolver) -> None:
        self._mutations = mutations
        self._keys = mutations.keys
        self._resolver = resolver

    async def update(self, call: Call, request: public.UpdateInstanceRequest) -> Answer[public.Instance]:
        fields = _fields(request.update_mask.paths)
        if "display_name" in fields:
            check_display_name(request.instance.display_name, "instance.display_name")

        async def attempt() -> Plan[public.Instance]:
            return await self._attempt(request.instance, fields)

        return await self._mutations.run(call, attempt, public.Instance)

    async def _attempt(self, wanted: public.Instance, fields: frozenset[str]) -> Plan[public.Instance]:
        name = await self._resolver.instance(wanted.name, field="instance.name")
        key = self._keys.instance(name.project, name.instance)
        kv, status_kv, claim_kv = await self._mutations.read(
            key, self._keys.instance_status(name.instance), self._keys.claim(name.instance)
        )
        if kv is None:
            raise not_found(wanted.name)
        if status_kv is None:
            raise not_found(wanted.name)
        check_etag(str(name), wanted.etag, kv)
        before = records.InstanceRecord.FromString(kv.value)
        after = _changed(before, wanted, fields)
        check_labels(after.labels, "instance.labels")
        unchanged = after == before
        status = records.InstanceStatus.FromString(status_kv.value)
        claim = records.Claim.FromString(claim_kv.value) if claim_kv else None
        # An etag of 0 stands for the revision that this change gets.
        revision = kv.mod_revision if unchanged else 0
        entry = Entry(key=key, value=after, create_revision=kv.create_revision, mod_revision=revision)
        response = instance_message(entry, status, claim)
        if unchanged:
            return Plan(response=response)
        if status.state == public.Instance.STATE_DELETING:
            raise RemudaError(
                Reason.STATE_FORBIDS_ACTION,
                f"{name} is being deleted",
                violations=[Violation(str(name), "is DELETING")],
            )
        compare, success = await self._rename(name, before.display_name, after.display_name)
        return Plan(
            response=response,
            # The status: whoever deletes the instance marks it first, and then frees the name that it reads.
            compare=[
                ops.mod_is(key, kv.mod_revision),
                ops.mod_is(status_kv.key, status_kv.mod_revision),
                *compare,
            ],
            success=[ops.put(key, after.SerializeToString(deterministic=True)), *success],
            witness=key,
        )

    async def _rename(self, name: InstanceName, old: str, new: str) -> tuple[list[ops.Compare], list[ops.Op]]:
        if new == old:
            return [], []
        old_key = self._keys.instance_name(name.project, old)
        new_key = self._keys.instance_name(name.project, new)
        taken = await self._mutations.etcd.get(new_key)
        if taken is not None:
            other = names.instance_name(name.project, InstanceId(taken.value.decode()))
            raise already_exists(other, f"{other} has the display name {new}")
        return [ops.absent(new_key)], [ops.delete(old_key), ops.put(new_key, name.instance.encode())]


def _changed(
    before: records.InstanceRecord, wanted: public.Instance, fields: frozenset[str]
) -> records.InstanceRecord:
    after = records.InstanceRecord()
    after.CopyFrom(before)
    if "display_name" in fields:
        after.display_name = wanted.display_name
    labels = changed_labels(before.labels, wanted.labels, fields)
    after.ClearField("labels")
    after.labels.update(labels)
    return after


def _fields(paths: Sequence[str]) -> frozenset[str]:
    """Raises RemudaError INVALID_ARGUMENT for a path that UpdateInstance does not know."""
    if len(paths) > _MOST_PATHS:
        raise invalid_argument("update_mask", f"has more than {_MOST_PATHS} paths")
    if not paths or _ALL_FIELDS in paths:
        return _FIELDS
    for path in paths:
        if path not in _FIELDS and not is_label_path(path):
            raise invalid_argument("update_mask", f"{path} cannot be changed by UpdateInstance")
    return frozenset(paths)
