"""CreateInstance: a record becomes a guest that runs on a host.

Parameters: InstanceRecord (sizes, image, requested ports and pool) and, from the request, an optional host.

The host is chosen and reserved first, because everything after it is done there. Addresses come before disks,
because the config drive carries them. The instance belongs to the host only with the last txn; until then it
is CREATING, and what it takes stands in the reservation.

Point of no return: the last txn itself. A guest that was just booted has nothing to lose, so up to then
everything can be undone, and a launch that fails leaves an instance that is FAILED, says why, and has
nothing: no host, no ports, no hold on its image.
"""

from remuda.agent.v1.agent_pb2 import DefineDomain, EnsureBaseImage, PrepareDisks, StartDomain
from remuda.agent.v1.common_pb2 import DomainSpec
from remuda.compute.v1.instance_pb2 import CreateInstanceRequest, Instance
from remuda.image.v1.chunk_pb2 import SignedGrant
from remuda.store.v1.instance_pb2 import InstanceStatus
from remuda.store.v1.saga_pb2 import CreateInstanceState
from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd import ops
from remuda_core.ids import Epoch, HostId, ImageId
from remuda_core.names import parse_network

from remuda_scheduler.engine.run import Run
from remuda_scheduler.engine.saga import Ending, Saga, Step
from remuda_scheduler.ports import Decision, PlacementRequest
from remuda_scheduler.sagas.addressing import allocate_ports, give_ports_back
from remuda_scheduler.sagas.guest import answer, domain_spec
from remuda_scheduler.sagas.placing import drop_reservation, indebted, reserve, reserved, resolve_host

_Run = Run[CreateInstanceState]


def _host(run: _Run) -> str:
    return run.state.host_id


async def reserve_capacity(run: _Run) -> None:
    if reserved(run, run.state.host_id):
        return
    record, status = await run.instance()
    request = CreateInstanceRequest()
    run.record.request.Unpack(request)
    epoch = Epoch(status.epoch + 1)

    def remember(decision: Decision) -> None:
        run.state.host_id, run.state.pool, run.state.epoch = decision.host_id, decision.pool, epoch

    await reserve(
        run,
        record,
        PlacementRequest(
            vcpus=record.vcpus,
            memory_mib=record.memory_mib,
            disk_bytes=record.disk_bytes,
            networks=[parse_network(one.network) for one in record.requested_interfaces],
            pool=record.requested_pool,
            host_id=resolve_host(run, request.host),
            excluded=indebted(run),
            architecture=record.architecture,
        ),
        epoch,
        remember,
    )


async def release_capacity(run: _Run) -> None:
    drop_reservation(run)


async def allocate_addresses(run: _Run) -> None:
    if run.state.ports:
        return
    record, _ = await run.instance()

    def remember(ports: object) -> None:
        del run.state.ports[:]
        run.state.ports.extend(ports)  # type: ignore[arg-type]

    await allocate_ports(run, record, remember)


async def release_addresses(run: _Run) -> None:
    ports = list(run.state.ports)
    del run.state.ports[:]
    await give_ports_back(run, ports)


def _leave_to_read(run: _Run, image: str) -> SignedGrant:
    host = HostId(run.state.host_id)
    return run.services.grants.sign(host_id=host, operation_id=run.operation_id, images=[ImageId(image)])


async def fetch_base_image(run: _Run) -> None:
    record, _ = await run.instance()
    work = EnsureBaseImage(
        image_id=record.image_id,
        manifest_digest=record.manifest_digest,
        grant=_leave_to_read(run, record.image_id),
        pool=run.state.pool,
    )
    await run.order(run.state.host_id, run.state.epoch, ensure_base_image=work)


async def leave_base_image(run: _Run) -> None:
    """The cache stays, but a fetch that still runs is stopped."""
    await run.order(run.state.host_id, run.state.epoch, undo=True, ensure_base_image=EnsureBaseImage())


async def _spec(run: _Run) -> DomainSpec:
    record, _ = await run.instance()
    return await domain_spec(
        run,
        record,
        ports=run.state.ports,
        pool=run.state.pool,
        machine_type=run.state.machine_type,
    )


async def prepare_disks(run: _Run) -> None:
    spec = await _spec(run)
    work = PrepareDisks(spec=spec, grant=_leave_to_read(run, spec.image_id))
    await run.order(run.state.host_id, run.state.epoch, prepare_disks=work)


async def remove_disks(run: _Run) -> None:
    await run.order(
        run.state.host_id,
        run.state.epoch,
        undo=True,
        prepare_disks=PrepareDisks(spec=await _spec(run)),
    )


async def define_domain(run: _Run) -> None:
    output = await run.order(
        run.state.host_id, run.state.epoch, define_domain=DefineDomain(spec=await _spec(run))
    )
    run.state.machine_type = output.machine_type


async def undefine_domain(run: _Run) -> None:
    await run.order(
        run.state.host_id,
        run.state.epoch,
        undo=True,
        define_domain=DefineDomain(spec=await _spec(run)),
    )


async def start_guest(run: _Run) -> None:
    try:
        await run.order(run.state.host_id, run.state.epoch, start_domain=StartDomain())
    except RemudaError as refusal:
        if refusal.reason is not Reason.QUARANTINED:
            raise
        # The host was booted in the middle of the launch. No record names the copy before the last txn, so no
        # verdict confirms it: only the order to make it does, which finds everything made.
        host, epoch, spec = run.state.host_id, run.state.epoch, await _spec(run)
        await run.order(host, epoch, step="disks_prepared", prepare_disks=PrepareDisks(spec=spec))
        await run.order(host, epoch, start_domain=StartDomain())


async def destroy_guest(run: _Run) -> None:
    await run.order(run.state.host_id, run.state.epoch, undo=True, start_domain=StartDomain())


async def succeed(run: _Run) -> Ending:
    def change(status: InstanceStatus) -> None:
        status.state = Instance.STATE_RUNNING
        status.status_message = ""
        status.host_id = run.state.host_id
        status.epoch = run.state.epoch
        status.pool = run.state.pool
        status.machine_type = run.state.machine_type
        del status.ports[:]
        status.ports.extend(run.state.ports)

    _, status = await run.instance()
    change(status)
    return Ending(change=change, response=await answer(run, status))


async def fail(run: _Run, error: RemudaError) -> Ending:
    def change(status: InstanceStatus) -> None:
        status.state = Instance.STATE_FAILED
        status.status_message = f"launch failed: {error.message}"

    record, _ = await run.instance()
    ref = run.services.keys.image_ref(ImageId(record.image_id), run.instance_id)
    return Ending(change=change, also=(ops.delete(ref),))


SAGA = Saga(
    action="CreateInstance",
    state=CreateInstanceState,
    steps=(
        Step(name="capacity_reserved", do=reserve_capacity, undo=release_capacity),
        Step(name="addresses_allocated", do=allocate_addresses, undo=release_addresses),
        # A slow network and a large image: the agent reports progress all the while.
        Step(
            name="base_image_present",
            do=fetch_base_image,
            undo=leave_base_image,
            host=_host,
            deadline_seconds=3600.0,
        ),
        Step(name="disks_prepared", do=prepare_disks, undo=remove_disks, host=_host),
        Step(name="domain_defined", do=define_domain, undo=undefine_domain, host=_host),
        Step(name="guest_started", do=start_guest, undo=destroy_guest, host=_host),
    ),
    succeed=succeed,
    fail=fail,
)
