"""Addresses and MACs for an instance: taken for all of its ports in one txn, or not at all."""

import uuid
from collections.abc import Callable, Sequence
from typing import Any

from remuda.compute.v1.instance_pb2 import NetworkInterface
from remuda.compute.v1.network_pb2 import Network
from remuda.compute.v1.operation_pb2 import OperationStep
from remuda.store.v1.host_pb2 import Debt
from remuda.store.v1.instance_pb2 import InstanceRecord, Port, PortRecord
from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd import ops
from remuda_core.ids import NetworkId
from remuda_core.names import network_name, parse_network

from remuda_scheduler.addresses import derived_mac, free_addresses, freed_ports
from remuda_scheduler.engine.run import Run
from remuda_scheduler.sagas.guest import network_of

_TRIES = 20


async def allocate_ports(
    run: Run[Any], record: InstanceRecord, remember: Callable[[Sequence[Port]], None]
) -> None:
    """`remember` puts the ports into the saga's state, which the same txn journals: none is ever lost.

    Raises RemudaError NO_ADDRESS_LEFT, ADDRESS_TAKEN, NETWORK_NOT_FOUND.
    """
    keys = run.services.keys
    # The lock only spares retries among our own operations. Uniqueness is the txn's.
    async with run.services.allocating:
        for attempt in range(_TRIES):
            ports = await _choose(run, record, attempt)
            remember(ports)
            taken = [keys.port(NetworkId(port.network), port.address) for port in ports]
            macs = [keys.mac(port.mac_address) for port in ports]
            records = [PortRecord(port=port, instance_id=run.instance_id) for port in ports]
            written = [
                ops.put(key, record.SerializeToString(deterministic=True))
                for key, record in zip(taken, records, strict=True)
            ] + [ops.put(mac, port.id.encode()) for mac, port in zip(macs, ports, strict=True)]
            if await run.commit(compare=[ops.absent(key) for key in (*taken, *macs)], also=written):
                return
            remember(())
    raise RemudaError(Reason.UNAVAILABLE, f"addresses were taken by others {_TRIES} times in a row")


async def _choose(run: Run[Any], record: InstanceRecord, attempt: int) -> list[Port]:
    ports: list[Port] = []
    for index, interface in enumerate(record.requested_interfaces):
        network = parse_network(interface.network, field="network_interfaces.network")
        mine = {port.address for port in ports if port.network == network}
        port = Port(
            # The same for a repeated step, another for another launch.
            id=str(uuid.uuid5(uuid.UUID(run.operation_id), str(index))),
            network=network,
            address=await _address(run, network, interface, mine),
            mac_address=derived_mac(run.instance_id, index, attempt),
        )
        ports.append(port)
    return ports


async def _address(run: Run[Any], network: NetworkId, interface: NetworkInterface, mine: set[str]) -> str:
    prefix = run.services.keys.ports(network)
    if interface.address:
        taken = await run.services.etcd.get(f"{prefix}{interface.address}")
        if taken is not None or interface.address in mine:
            raise RemudaError(
                Reason.ADDRESS_TAKEN,
                f"{interface.address} of network {network} is taken",
                metadata={"network": network, "address": interface.address},
            )
        return interface.address
    record: Network = (await network_of(run, network)).network
    known = set(mine)
    async for page in run.services.etcd.pages(prefix):
        known.update(kv.key.removeprefix(prefix) for kv in page.kvs)
    found = next(free_addresses(record, known), None)
    if found is None:
        raise RemudaError(
            Reason.NO_ADDRESS_LEFT,
            f"{network_name(network)} has no address left",
            metadata={"network": network},
        )
    return found


async def give_ports_back(run: Run[Any], ports: Sequence[Port]) -> None:
    """With the next journal write. Where a host still owes clean-up the guest may run with them: then they
    go with the debt that is paid last, and are free when it is.
    """
    if not ports:
        return
    debt = await last_debt(run)
    if debt is None:
        for op in freed_ports(run.services.keys, ports):
            run.with_next_write(op)
        return
    key, record = debt
    del record.ports[:]
    record.ports.extend(ports)
    run.with_next_write(ops.put(key, record.SerializeToString(deterministic=True)))


async def last_debt(run: Run[Any]) -> tuple[str, Debt] | None:
    """The youngest debt that this operation left, from etcd or about to be written."""
    for op in run.pending:
        if op.request_put.key.startswith(run.services.keys.debts.encode()):
            return op.request_put.key.decode(), Debt.FromString(op.request_put.value)
    owed = {entry.host_id for entry in run.journal.entries if entry.state == OperationStep.STATE_OWED}
    prefixes = [f"{run.services.keys.debts}{host}/{run.operation_id}/" for host in owed]
    found = [kv for prefix in prefixes for kv in (await run.services.etcd.range_prefix(prefix)).kvs]
    if not found:
        return None
    youngest = max(found, key=lambda kv: (kv.create_revision, kv.key))
    return youngest.key, Debt.FromString(youngest.value)
