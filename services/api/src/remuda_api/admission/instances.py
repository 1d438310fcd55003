"""CreateInstance: everything it is made from is looked at, then one transaction admits it."""

import uuid
from collections import Counter
from dataclasses import dataclass

from google.longrunning import operations_pb2
from remuda.compute.v1 import instance_pb2 as public
from remuda.image.v1 import image_pb2
from remuda.store.v1 import host_pb2
from remuda.store.v1 import image_pb2 as image_records
from remuda.store.v1 import instance_pb2 as records
from remuda_core import names
from remuda_core.errors import (
    Reason,
    RemudaError,
    already_exists,
    invalid_argument,
    not_found,
)
from remuda_core.etcd import ops
from remuda_core.etcd.cache import Entry
from remuda_core.etcd.model import KeyValue
from remuda_core.ids import InstanceId, OperationId, ProjectId
from remuda_core.lifecycle import Action
from remuda_core.names import ImageName, InstanceName

from remuda_api.admission.addresses import check_address
from remuda_api.admission.labels import check_labels
from remuda_api.admission.mutations import Answer, Mutations, Plan
from remuda_api.admission.operations import claim_of, ended, now, pending_operation, put_operation
from remuda_api.admission.placement import Explainer, require_a_host
from remuda_api.admission.requests import Call
from remuda_api.admission.resolving import Resolver, check_display_name
from remuda_api.image_visibility import usable_by
from remuda_api.store.instances import GIB, instance_message
from remuda_api.store.operations import operation_message

Operation = operations_pb2.Operation


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ingredients:
    """What one attempt saw, and what must still be so when it commits."""

    flavor: host_pb2.FlavorRecord
    image: image_records.ImageRecord
    image_name: ImageName
    compare: tuple[ops.Compare, ...]


class InstanceAdmission:
    def __init__(self, mutations: Mutations, resolver: Resolver, explainer: Explainer) -> None:
        self._mutations = mutations
        self._keys = mutations.keys
        self._resolver = resolver
        self._explainer = explainer

    async def create(self, call: Call, request: public.CreateInstanceRequest) -> Answer[Operation]:
        project = names.parse_project(request.parent)
        check_display_name(request.instance.display_name, "instance.display_name")
        check_labels(request.instance.labels, "instance.labels")
        # Drawn once: what makes a lost answer harmless is that a second attempt writes the same ids.
        instance = InstanceName(project, InstanceId(str(uuid.uuid4())))
        operation = OperationId(str(uuid.uuid4()))

        async def attempt() -> Plan[Operation]:
            return await self._attempt(call, request, instance, operation)

        return await self._mutations.run(call, attempt, Operation)

    async def _attempt(
        self,
        call: Call,
        request: public.CreateInstanceRequest,
        instance: InstanceName,
        operation: OperationId,
    ) -> Plan[Operation]:
        seen = await self._ingredients(request)
        admitted = await self._as_admitted(request, instance, seen)
        record = _instance_record(request.instance, instance, seen)
        status = records.InstanceStatus(
            state=public.Instance.STATE_CREATING, project=instance.project, update_time=record.create_time
        )
        pending = pending_operation(
            call, operation=operation, action=Action.CREATE, instance=instance, request=admitted
        )
        if call.validate_only:
            pending.metadata.placement.CopyFrom(await require_a_host(self._explainer, admitted))
            pending.id = ""
            entry = Entry(key="", value=record, create_revision=0, mod_revision=0)
            preview = instance_message(entry, status, None)
            return Plan(response=operation_message(ended(pending, preview)))
        keys, uid = self._keys, instance.instance
        name_key = keys.instance_name(instance.project, record.display_name)
        return Plan(
            response=operation_message(pending),
            operation_id=operation,
            compare=[ops.absent(name_key), ops.absent(keys.operation(operation)), *seen.compare],
            success=[
                put_operation(keys, pending),
                ops.put(keys.claim(uid), claim_of(pending).SerializeToString(deterministic=True)),
                ops.put(keys.instance(instance.project, uid), record.SerializeToString(deterministic=True)),
                ops.put(keys.instance_status(uid), status.SerializeToString(deterministic=True)),
                ops.put(name_key, uid.encode()),
                ops.put(
                    keys.image_ref(seen.image_name.image, uid),
                    image_records.ImageRef(instance_id=uid).SerializeToString(deterministic=True),
                ),
            ],
            witness=keys.operation(operation),
        )

    async def _ingredients(self, request: public.CreateInstanceRequest) -> _Ingredients:
        wanted = request.instance
        project = names.parse_project(request.parent)
        # Before anything else can be refused: the order of refusals would tell which images others have.
        image_name = await self._usable_image(project, wanted.image)
        flavor_key = self._keys.flavor(names.parse_flavor(wanted.flavor, field="instance.flavor"))
        image_key = self._keys.image(image_name.image)
        networks = await self._networks(wanted)
        name, flavor, image = await self._mutations.read(
            self._keys.instance_name(project, wanted.display_name), flavor_key, image_key
        )
        if name is not None:
            taken = names.instance_name(project, InstanceId(name.value.decode()))
            raise already_exists(taken, f"{taken} has the display name {wanted.display_name}")
        if flavor is None:
            raise not_found(wanted.flavor)
        image_record = image_records.ImageRecord.FromString(image.value) if image else None
        if image is None or image_record is None or not _usable(project, image_name, image_record):
            raise not_found(wanted.image)
        flavor_record = host_pb2.FlavorRecord.FromString(flavor.value)
        _check_image(image_name, image_record.image, flavor_record)
        # Not the flavor: an instance keeps the size that it was launched with. The image and the networks:
        # who deletes one counts what refers to it, and must not miss this instance.
        kept = [ops.mod_is(image_key, image.mod_revision)]
        kept += [ops.mod_is(kv.key, kv.mod_revision) for kv in networks]
        return _Ingredients(
            flavor=flavor_record, image=image_record, image_name=image_name, compare=tuple(kept)
        )

    async def _usable_image(self, project: ProjectId, name: str) -> ImageName:
        """Raises IMAGE_NOT_FOUND for what `project` may not use, as for what is not there. What the caller
        may see elsewhere does not count: the instance would carry it into this project.
        """
        found = await self._resolver.image(name, field="instance.image")
        kv = await self._mutations.etcd.get(self._keys.image(found.image))
        if kv is None or not _usable(project, found, image_records.ImageRecord.FromString(kv.value)):
            raise not_found(name)
        return found

    async def _networks(self, wanted: public.Instance) -> list[KeyValue]:
        found: list[KeyValue] = []
        for index, interface in enumerate(wanted.network_interfaces):
            field = f"instance.network_interfaces[{index}]"
            network = names.parse_network(interface.network, field=f"{field}.network")
            port = self._keys.port(network, interface.address or "-")
            kv, taken = await self._mutations.read(self._keys.network(network), port)
            if kv is None:
                raise not_found(interface.network)
            if interface.address:
                record = host_pb2.NetworkRecord.FromString(kv.value)
                check_address(record.network, interface.address, f"{field}.address")
            if taken is not None:
                raise _taken(interface)
            found.append(kv)
        asked = Counter((one.network, one.address) for one in wanted.network_interfaces if one.address)
        if twice := [address for (_, address), count in asked.items() if count > 1]:
            raise invalid_argument("instance.network_interfaces", f"{twice[0]} is asked for twice")
        return list({kv.key: kv for kv in found}.values())

    async def _as_admitted(
        self, request: public.CreateInstanceRequest, instance: InstanceName, seen: _Ingredients
    ) -> public.CreateInstanceRequest:
        """The request with UUIDs in its names, and without the user data, which stands in the record.

        Only what is read from it later: a client may set any field, output only ones too.
        """
        wanted = request.instance
        admitted = public.CreateInstanceRequest(
            parent=request.parent,
            instance=public.Instance(
                name=str(instance),
                uid=instance.instance,
                display_name=wanted.display_name,
                labels=dict(wanted.labels),
                flavor=wanted.flavor,
                image=str(seen.image_name),
                pool=wanted.pool,
                network_interfaces=[network_interface(one) for one in wanted.network_interfaces],
            ),
            request_id=request.request_id,
            validate_only=request.validate_only,
        )
        if request.host:
            host = await self._resolver.host(request.host, field="host")
            if await self._mutations.etcd.get(self._keys.host(host)) is None:
                raise not_found(request.host)
            admitted.host = names.host_name(host)
        return admitted


def _usable(project: ProjectId, name: ImageName, record: image_records.ImageRecord) -> bool:
    return record.project == name.project and usable_by(project, record)


def _taken(interface: public.NetworkInterface) -> RemudaError:
    return RemudaError(
        Reason.ADDRESS_TAKEN,
        f"{interface.address} of {interface.network} is taken",
        metadata={"network": interface.network, "address": interface.address},
    )


def _check_image(name: ImageName, image: image_pb2.Image, flavor: host_pb2.FlavorRecord) -> None:
    if image.state != image_pb2.Image.STATE_ACTIVE:
        state = image_pb2.Image.State.Name(image.state).removeprefix("STATE_")
        raise RemudaError(
            Reason.IMAGE_NOT_ACTIVE, f"{name} is {state}", metadata={"state": state}, resource=str(name)
        )
    size = flavor.flavor
    if size.memory_mib < image.min_memory_mib:
        raise invalid_argument("instance.flavor", f"{name} needs {image.min_memory_mib} MiB of memory")
    needed = max(image.virtual_bytes, image.min_disk_gib * GIB)
    if size.disk_gib and size.disk_gib * GIB < needed:
        raise invalid_argument("instance.flavor", f"{name} needs a disk of {-(-needed // GIB)} GiB")


def _instance_record(
    wanted: public.Instance, name: InstanceName, seen: _Ingredients
) -> records.InstanceRecord:
    flavor, image = seen.flavor.flavor, seen.image.image
    return records.InstanceRecord(
        project=name.project,
        id=name.instance,
        display_name=wanted.display_name,
        labels=dict(wanted.labels),
        flavor=seen.flavor.id,
        vcpus=flavor.vcpus,
        memory_mib=flavor.memory_mib,
        disk_bytes=flavor.disk_gib * GIB or max(image.virtual_bytes, image.min_disk_gib * GIB),
        image_project=seen.image_name.project,
        image_id=seen.image_name.image,
        manifest_digest=image.manifest_digest,
        user_data=wanted.user_data,
        requested_interfaces=[network_interface(one) for one in wanted.network_interfaces],
        requested_pool=wanted.pool,
        intent=public.Instance.INTENT_RUNNING,
        create_time=now(),
        architecture=image.architecture,
    )


def network_interface(wanted: public.NetworkInterface) -> public.NetworkInterface:
    """Without what only the leader gives."""
    return public.NetworkInterface(network=wanted.network, address=wanted.address)
