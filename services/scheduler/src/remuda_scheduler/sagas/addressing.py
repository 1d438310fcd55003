"""Addresses and MACs for an instance: taken for all of its ports in one txn, or not at all."""

import uuid
from collections.abc import Callable, Sequence
from typing import Any

from remuda.compute.v1.instance_pb2 import NetworkInterface
from remuda.compute.v1.network_pb2 import Network
from remuda.store.v1.instance_pb2 import InstanceRecord, Port, PortRecord
from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd import ops
from remuda_core.ids import InstanceId, NetworkId
from remuda_core.names import network_name, parse_network

from remuda_scheduler.addresses import derived_mac, free_addresses, freed_ports
from remuda_scheduler.engine.debts import debts_of, with_ports
from remuda_scheduler.engine.run import Run
from remuda_scheduler.engine.services import Services
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
            compare = [ops.absent(key) for key in (*taken, *macs)]
            # A network is deleted only without ports: one that gets ours cannot be.
            compare += [ops.exists(keys.network(NetworkId(port.network))) for port in ports]
            if await run.commit(compare=compare, also=written):
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
    record: Network = (await network_of(run, network)).network
    if interface.address:
        taken = await run.services.etcd.get(f"{prefix}{interface.address}")
        if taken is not None or interface.address in mine:
            raise RemudaError(
                Reason.ADDRESS_TAKEN,
                f"{interface.address} of network {network} is taken",
                metadata={"network": network, "address": interface.address},
            )
        return interface.address
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


async def given_back(
    services: Services, instance: InstanceId, ports: Sequence[Port]
) -> tuple[list[ops.Compare], list[ops.Op]]:
    """What gives the ports back, for a txn of the operation that holds the instance.

    Where hosts still owe clean-up the guest may run with them: then they hang on each of its debts, and the
    one that is paid last frees them. The comparisons see to it that none has been paid meanwhile.
    """
    owed = await debts_of(services, instance=instance) if ports else []
    if not owed:
        return [], freed_ports(services.keys, ports)
    compare = [ops.mod_is(one.key, one.mod_revision) for one in owed]
    hung = [(one.key, with_ports(one.value, ports)) for one in owed]
    return compare, [ops.put(key, debt.SerializeToString(deterministic=True)) for key, debt in hung]


async def give_ports_back(run: Run[Any], ports: Sequence[Port]) -> None:
    """Writes the journal too: the caller has taken them out of the saga's state."""
    while ports:
        compare, success = await given_back(run.services, run.instance_id, ports)
        if await run.commit(compare=compare, also=success):
            return
