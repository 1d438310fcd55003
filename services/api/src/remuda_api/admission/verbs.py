"""Start, Stop, LiveMigrate, Snapshot, Delete and ReconcileInstance: who gets the instance's claim."""

import uuid
from dataclasses import dataclass
from typing import TypeAlias

from google.longrunning import operations_pb2
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from remuda.compute.v1 import instance_pb2 as public
from remuda.compute.v1 import moving_pb2, reconcile_pb2, snapshot_pb2
from remuda.store.v1 import instance_pb2 as records
from remuda.store.v1 import operation_pb2
from remuda_core import lifecycle, names
from remuda_core.errors import Reason, RemudaError, instance_busy, not_found
from remuda_core.etcd import ops
from remuda_core.etcd.model import KeyValue
from remuda_core.ids import HostId, ImageId, OperationId
from remuda_core.lifecycle import Action
from remuda_core.migration.preflight import without_hosts
from remuda_core.names import InstanceName, operation_name
from remuda_core.rpc.context import caller

from remuda_api.admission.etags import check_etag
from remuda_api.admission.mutations import Answer, Mutations, Plan
from remuda_api.admission.new_images import NewImage, plan_snapshot
from remuda_api.admission.operations import (
    cancel_record,
    claim_of,
    ended,
    pending_operation,
    put_operation,
)
from remuda_api.admission.placement import Explainer, require_a_host, require_a_target
from remuda_api.admission.requests import Call
from remuda_api.admission.resolving import Resolver, check_display_name
from remuda_api.store.caches import entry_of
from remuda_api.store.instances import instance_message
from remuda_api.store.operations import operation_message

Operation = operations_pb2.Operation
VerbRequest: TypeAlias = (
    public.StartInstanceRequest
    | public.StopInstanceRequest
    | moving_pb2.LiveMigrateInstanceRequest
    | snapshot_pb2.SnapshotInstanceRequest
    | public.DeleteInstanceRequest
    | reconcile_pb2.ReconcileInstanceRequest
)

# What the owner wants from now on, also if the operation fails.
_INTENT = {Action.START: public.Instance.INTENT_RUNNING, Action.STOP: public.Instance.INTENT_STOPPED}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """An instance at one revision."""

    name: InstanceName
    instance: KeyValue
    status_kv: KeyValue
    claim_kv: KeyValue | None

    @property
    def record(self) -> records.InstanceRecord:
        return records.InstanceRecord.FromString(self.instance.value)

    @property
    def status(self) -> records.InstanceStatus:
        return records.InstanceStatus.FromString(self.status_kv.value)

    @property
    def claim(self) -> records.Claim | None:
        return records.Claim.FromString(self.claim_kv.value) if self.claim_kv else None

    @property
    def message(self) -> public.Instance:
        return instance_message(entry_of(self.instance, records.InstanceRecord), self.status, self.claim)


class VerbAdmission:
    def __init__(self, mutations: Mutations, resolver: Resolver, explainer: Explainer) -> None:
        self._mutations = mutations
        self._keys = mutations.keys
        self._resolver = resolver
        self._explainer = explainer

    async def admit(self, call: Call, action: Action, request: VerbRequest) -> Answer[Operation]:
        """Raises RemudaError as lifecycle.check does, ETAG_MISMATCH, INSTANCE_BUSY naming the winner; for
        snapshots also ALREADY_EXISTS for the image's name and QUOTA_EXCEEDED."""
        operation = OperationId(str(uuid.uuid4()))
        image: ImageId | None = None
        if isinstance(request, snapshot_pb2.SnapshotInstanceRequest):
            check_display_name(request.display_name, "display_name")
            image = ImageId(str(uuid.uuid4()))

        async def attempt() -> Plan[Operation]:
            seen = await self._look(request.name)
            check_etag(str(seen.name), request.etag, seen.instance)
            admitted = await self._as_admitted(seen, request)
            pending = pending_operation(
                call, operation=operation, action=action, instance=seen.name, request=admitted
            )
            if image is not None:
                pending.image_id = image
                pending.metadata.image = names.image_name(seen.name.project, image)
            return await self._decide(call, action, seen, admitted, pending)

        return await self._mutations.run(call, attempt, Operation)

    async def _look(self, name: str) -> _Seen:
        found = await self._resolver.instance(name)
        instance, status, claim = await self._mutations.read(
            self._keys.instance(found.project, found.instance),
            self._keys.instance_status(found.instance),
            self._keys.claim(found.instance),
        )
        if instance is None or status is None:
            raise not_found(name)
        return _Seen(name=found, instance=instance, status_kv=status, claim_kv=claim)

    async def _decide(
        self,
        call: Call,
        action: Action,
        seen: _Seen,
        admitted: VerbRequest,
        pending: operation_pb2.OperationRecord,
    ) -> Plan[Operation]:
        claim = seen.claim
        if action is Action.DELETE and claim is not None and (queued := _delete_in(claim)):
            return await self._join(queued, seen)
        if action is not Action.DELETE and self._as_wanted(action, seen, admitted):
            if claim is not None:
                # It may be leaving that state right now.
                raise instance_busy(str(seen.name), operation_name(OperationId(claim.operation_id)))
            return self._nothing_to_do(call, action, seen, pending)
        refusal = lifecycle.check(
            action,
            seen.status.state,
            instance=str(seen.name),
            discard_memory=bool(getattr(admitted, "discard_memory", False)),
            held_by=operation_name(OperationId(claim.operation_id)) if claim is not None else "",
        )
        if refusal is not None:
            raise refusal
        made = await self._image_made(seen, admitted, pending)
        if call.validate_only:
            return await self._preview(action, seen, admitted, pending, made)
        if claim is not None:
            return await self._supersede(call, seen, claim, pending)
        return self._claim(action, seen, pending, made)

    async def _image_made(
        self, seen: _Seen, admitted: VerbRequest, pending: operation_pb2.OperationRecord
    ) -> NewImage | None:
        if not isinstance(admitted, snapshot_pb2.SnapshotInstanceRequest):
            return None
        return await plan_snapshot(
            self._mutations.etcd,
            self._keys,
            image=ImageId(pending.image_id),
            display_name=admitted.display_name,
            instance=seen.name,
            owned=seen.record,
            operation=OperationId(pending.id),
        )

    def _claim(
        self, action: Action, seen: _Seen, pending: operation_pb2.OperationRecord, made: NewImage | None
    ) -> Plan[Operation]:
        claim_key = self._keys.claim(seen.name.instance)
        return Plan(
            response=operation_message(pending),
            operation_id=pending.id,
            compare=[
                *self._unchanged(seen),
                ops.absent(claim_key),
                self._new(pending),
                *(made.compare if made else ()),
            ],
            success=[
                put_operation(self._keys, pending),
                ops.put(claim_key, claim_of(pending).SerializeToString(deterministic=True)),
                *self._intent(action, seen),
                *(made.success if made else ()),
            ],
            witness=self._keys.operation(OperationId(pending.id)),
        )

    async def _supersede(
        self, call: Call, seen: _Seen, claim: records.Claim, pending: operation_pb2.OperationRecord
    ) -> Plan[Operation]:
        """Ask the holder to cancel, and be next."""
        assert seen.claim_kv is not None
        pending.supersedes = claim.operation_id
        queued = records.Claim()
        queued.CopyFrom(claim)
        queued.successor_id = pending.id
        cancel_key = self._keys.cancel(OperationId(claim.operation_id))
        # Not the status: it is allowed from every state, and the holder writes it all the time.
        compare = [ops.mod_is(seen.instance.key, seen.instance.mod_revision), self._new(pending)]
        compare.append(ops.mod_is(seen.claim_kv.key, seen.claim_kv.mod_revision))
        success = [
            put_operation(self._keys, pending),
            ops.put(seen.claim_kv.key, queued.SerializeToString(deterministic=True)),
        ]
        if await self._mutations.etcd.get(cancel_key) is None:
            compare.append(ops.absent(cancel_key))
            success.append(ops.put(cancel_key, cancel_record(call.principal)))
        return Plan(
            response=operation_message(pending),
            operation_id=pending.id,
            compare=compare,
            success=success,
            witness=self._keys.operation(OperationId(pending.id)),
        )

    async def _join(self, operation: OperationId, seen: _Seen) -> Plan[Operation]:
        """A second DeleteInstance is answered with the operation of the first."""
        kv = await self._mutations.etcd.get(self._keys.operation(operation))
        if kv is None:
            raise instance_busy(str(seen.name), operation_name(operation))
        record = operation_pb2.OperationRecord.FromString(kv.value)
        return Plan(response=operation_message(record), operation_id=operation)

    def _nothing_to_do(
        self, call: Call, action: Action, seen: _Seen, pending: operation_pb2.OperationRecord
    ) -> Plan[Operation]:
        done = ended(pending, seen.message)
        if call.validate_only:
            done.id = ""
            return Plan(response=operation_message(done))
        return Plan(
            response=operation_message(done),
            operation_id=done.id,
            compare=[
                *self._unchanged(seen),
                ops.absent(self._keys.claim(seen.name.instance)),
                self._new(done),
            ],
            success=[put_operation(self._keys, done), *self._intent(action, seen)],
            witness=self._keys.operation(OperationId(done.id)),
        )

    async def _preview(
        self,
        action: Action,
        seen: _Seen,
        admitted: VerbRequest,
        pending: operation_pb2.OperationRecord,
        made: NewImage | None,
    ) -> Plan[Operation]:
        if isinstance(admitted, moving_pb2.LiveMigrateInstanceRequest):
            if not admitted.target_host:
                # A host that is named is refused row by row.
                pending.metadata.placement.CopyFrom(await require_a_host(self._explainer, admitted))
            instance = seen.name.instance
            try:
                chosen = await require_a_target(self._explainer, instance, admitted)
            except RemudaError as error:
                raise (error if caller().sees_hosts else without_hosts(error)) from error
            pending.metadata.preflight.CopyFrom(chosen)
        pending.id = ""
        response: Message = Empty() if action is Action.DELETE else seen.message
        if made is not None:
            pending.metadata.image, response = "", made.message
        if isinstance(admitted, reconcile_pb2.ReconcileInstanceRequest):
            response = await self._explainer.plan_reconcile(seen.name.instance)
        return Plan(response=operation_message(ended(pending, response)))

    def _as_wanted(self, action: Action, seen: _Seen, admitted: VerbRequest) -> bool:
        if isinstance(admitted, moving_pb2.LiveMigrateInstanceRequest):
            host = seen.status.host_id
            return bool(host) and admitted.target_host == names.host_name(HostId(host))
        return lifecycle.holds_already(action, seen.status.state)

    async def _as_admitted(self, seen: _Seen, request: VerbRequest) -> VerbRequest:
        """The request with UUIDs in its names."""
        admitted = type(request)()
        admitted.CopyFrom(request)  # type: ignore[arg-type]
        admitted.name = str(seen.name)
        if isinstance(admitted, moving_pb2.LiveMigrateInstanceRequest):
            await self._hosts_of_migration(seen, admitted)
        return admitted

    async def _hosts_of_migration(self, seen: _Seen, admitted: moving_pb2.LiveMigrateInstanceRequest) -> None:
        if admitted.source_host:
            source = await self._resolver.host(admitted.source_host, field="source_host")
            if source != seen.status.host_id:
                present = names.host_name(HostId(seen.status.host_id)) if seen.status.host_id else ""
                raise RemudaError(
                    Reason.SOURCE_HOST_MISMATCH,
                    f"{seen.name} is on {present or 'no host'}, not on {admitted.source_host}",
                    metadata={"host": present, "source_host": admitted.source_host},
                )
            admitted.source_host = names.host_name(source)
        if admitted.target_host:
            target = await self._resolver.host(admitted.target_host, field="target_host")
            if await self._mutations.etcd.get(self._keys.host(target)) is None:
                raise not_found(admitted.target_host)
            admitted.target_host = names.host_name(target)

    def _intent(self, action: Action, seen: _Seen) -> list[ops.Op]:
        record = seen.record
        wanted = _INTENT.get(action)
        if wanted is None or record.intent == wanted:
            return []
        record.intent = wanted
        return [ops.put(seen.instance.key, record.SerializeToString(deterministic=True))]

    def _unchanged(self, seen: _Seen) -> list[ops.Compare]:
        """Neither what the owner owns, nor the state that the decision rests on."""
        return [
            ops.mod_is(seen.instance.key, seen.instance.mod_revision),
            ops.mod_is(seen.status_kv.key, seen.status_kv.mod_revision),
        ]

    def _new(self, record: operation_pb2.OperationRecord) -> ops.Compare:
        return ops.absent(self._keys.operation(OperationId(record.id)))


def _delete_in(claim: records.Claim) -> OperationId | None:
    """The delete that holds the instance, or that is next."""
    if claim.action == Action.DELETE.rpc:
        return OperationId(claim.operation_id)
    return OperationId(claim.successor_id) if claim.successor_id else None
