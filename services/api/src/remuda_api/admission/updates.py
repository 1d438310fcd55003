"""UpdateInstance: what the owner may change at once, without an operation."""

from remuda.compute.v1 import instance_pb2 as public
from remuda.store.v1 import instance_pb2 as records
from remuda_core import names
from remuda_core.errors import already_exists, invalid_argument, not_found
from remuda_core.etcd import ops
from remuda_core.etcd.cache import Entry
from remuda_core.ids import InstanceId
from remuda_core.names import InstanceName

from remuda_api.admission.etags import check_etag
from remuda_api.admission.mutations import Answer, Mutations, Plan
from remuda_api.admission.requests import Call
from remuda_api.admission.resolving import Resolver, check_display_name
from remuda_api.store.instances import instance_message

_FIELDS = frozenset({"display_name", "labels"})


class UpdateAdmission:
    def __init__(self, mutations: Mutations, resolver: Resolver) -> None:
        self._mutations = mutations
        self._keys = mutations.keys
        self._resolver = resolver

    async def update(self, call: Call, request: public.UpdateInstanceRequest) -> Answer[public.Instance]:
        fields = frozenset(request.update_mask.paths) or _FIELDS
        if unknown := sorted(fields - _FIELDS):
            raise invalid_argument("update_mask", f"{unknown[0]} cannot be changed by UpdateInstance")
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
        check_etag(str(name), wanted.etag, kv)
        before = records.InstanceRecord.FromString(kv.value)
        after = _changed(before, wanted, fields)
        unchanged = after == before
        status = records.InstanceStatus.FromString(status_kv.value) if status_kv else None
        claim = records.Claim.FromString(claim_kv.value) if claim_kv else None
        # An etag of 0 stands for the revision that this change gets.
        revision = kv.mod_revision if unchanged else 0
        entry = Entry(key=key, value=after, create_revision=kv.create_revision, mod_revision=revision)
        response = instance_message(entry, status, claim)
        if unchanged:
            return Plan(response=response)
        compare, success = await self._rename(name, before.display_name, after.display_name)
        return Plan(
            response=response,
            compare=[ops.mod_is(key, kv.mod_revision), *compare],
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
    if "labels" in fields:
        after.ClearField("labels")
        after.labels.update(wanted.labels)
    return after
