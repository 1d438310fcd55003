"""virsh is asked for what Remuda's agent asks libvirt for: else the comparison would say nothing."""

import libvirt
import pytest
from remuda_agent.hypervisor.libvirt import migration
from remuda_agent.hypervisor.model import MigrationRequest
from remuda_bench.migration import virsh
from remuda_bench.migration.plan import Kind
from remuda_core.ids import Epoch, InstanceId, OperationId

# virsh(1) of libvirt 9: the flag or the typed parameter behind each word.
FLAGS = {
    "--live": libvirt.VIR_MIGRATE_LIVE,
    "--p2p": libvirt.VIR_MIGRATE_PEER2PEER,
    "--persistent": libvirt.VIR_MIGRATE_PERSIST_DEST,
    "--abort-on-error": libvirt.VIR_MIGRATE_ABORT_ON_ERROR,
    "--tls": libvirt.VIR_MIGRATE_TLS,
    "--copy-storage-inc": libvirt.VIR_MIGRATE_NON_SHARED_INC,
    "--unsafe": libvirt.VIR_MIGRATE_UNSAFE,
}
PARAMETERS = {
    "--migrate-disks": libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS,
    "--tls-destination": libvirt.VIR_MIGRATE_PARAM_TLS_DESTINATION,
    "--migrateuri": libvirt.VIR_MIGRATE_PARAM_URI,
    "--xml": libvirt.VIR_MIGRATE_PARAM_DEST_XML,
    "--persistent-xml": libvirt.VIR_MIGRATE_PARAM_PERSIST_XML,
}


def spoken(kind: Kind) -> tuple[int, dict[str, str], list[str]]:
    """Flags, parameters and the rest of what virsh is told."""
    words = virsh.migrate_words(
        kind, domain="GUEST", target="host2", address="10.77.0.12", xml="/var/target.xml"
    )
    assert words.pop(0) == "migrate"
    flags, parameters, rest = 0, {}, []
    while words:
        word = words.pop(0)
        if word in FLAGS:
            flags |= FLAGS[word]
        elif word in PARAMETERS:
            parameters[PARAMETERS[word]] = words.pop(0)
        else:
            rest.append(word)
    return flags, parameters, rest


@pytest.mark.parametrize("kind", Kind)
def test_the_words_mean_the_flags_and_parameters_of_the_agent(kind: Kind) -> None:
    request = MigrationRequest(
        instance_id=InstanceId("GUEST"),
        operation_id=OperationId("op"),
        target_epoch=Epoch(2),
        target_hostname="host2",
        target_address="10.77.0.12",
        transport="tls",
        shared_disks=kind is Kind.SHARED,
        max_downtime_ms=virsh.MAX_DOWNTIME_MS,
        bandwidth_mib_s=0,
        auto_converge=False,
        allow_post_copy=False,
        bridges={},
    )
    asked = migration.parameters(
        request, live_xml="/var/target.xml", persistent_xml="/var/target.xml", disks=virsh.DISKS
    )
    disks = asked.get(libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS)
    if disks is not None:
        asked[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = ",".join(disks)
    flags, parameters, rest = spoken(kind)
    assert flags == migration.flags(request)
    assert parameters == asked
    assert rest == ["GUEST", migration.destination(request)]
