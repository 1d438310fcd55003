"""What hosts in memory show of themselves, and give up when a leader names it: Survey and Sweep."""

from typing import TYPE_CHECKING

from remuda.agent.v1.agent_pb2 import FoundDirectory, FoundFile, SurveyResponse, SweepReceipt, SweepTarget
from remuda.compute.v1.instance_pb2 import Instance
from remuda.scheduler.v1.registry_pb2 import ObservedInstance

from remuda_core.ids import InstanceId

if TYPE_CHECKING:
    from remuda_core.testing.hosts import FakeDirectory, FakeDomain, FakeHost

_OFF = (Instance.POWER_STATE_SHUTOFF, Instance.POWER_STATE_CRASHED)
DIGEST = b"the same for every disk here    "
VIRTUAL_BYTES = 1 << 30


def survey(host: "FakeHost", only: InstanceId | None, *, digests: bool) -> SurveyResponse:
    found = SurveyResponse(files=host.files)
    found.time.GetCurrentTime()
    for instance, domain in host.domains.items():
        if only in (None, instance):
            found.domains.append(shown(instance, domain))
    for instance, directory in host.directories.items():
        if only in (None, instance):
            active = instance in host.domains and host.domains[instance].power not in _OFF
            found.directories.append(_directory(host, instance, directory, digests=digests and not active))
    return found


def shown(instance: InstanceId, domain: "FakeDomain") -> ObservedInstance:
    return ObservedInstance(
        instance_id=instance,
        epoch=domain.epoch,
        operation_id=domain.operation,
        power_state=domain.power,
        reason=domain.reason,
        job=domain.job,
        persistent=domain.persistent,
    )


def sweep(host: "FakeHost", target: SweepTarget) -> SweepReceipt:
    match target.WhichOneof("target"):
        case "directory":
            instance = InstanceId(target.directory.instance_id)
            directory = host.directories.get(instance)
            if directory is None:
                return SweepReceipt(removed=True)
            if (directory.epoch, directory.role) != (target.directory.epoch, target.directory.role):
                return SweepReceipt(reason="it has changed since it was shown")
            del host.directories[instance]
        case "domain":
            instance = InstanceId(target.domain.instance_id)
            domain = host.domains.get(instance)
            if domain is None:
                return SweepReceipt(removed=True)
            if domain.power not in _OFF or domain.epoch != target.domain.epoch:
                return SweepReceipt(reason="it has changed since it was shown")
            del host.domains[instance]
        case _:
            if target.file not in host.files:
                return SweepReceipt(reason="it has changed since it was shown")
            host.files.remove(target.file)
    return SweepReceipt(removed=True)


def _directory(
    host: "FakeHost", instance: InstanceId, directory: "FakeDirectory", *, digests: bool
) -> FoundDirectory:
    found = FoundDirectory(
        instance_id=instance,
        pool=directory.pool,
        pool_uid="nfs-1" if directory.pool == "shared" else f"local-{host.id}",
        shared=directory.pool == "shared",
        owner_host_id=host.id,
        epoch=directory.epoch,
        operation_id=directory.operation,
        role=directory.role,
    )
    for name, kind in (("disk.qcow2", FoundFile.KIND_DISK), ("config.img", FoundFile.KIND_OTHER)):
        if kind == FoundFile.KIND_OTHER or directory.disk:
            file = found.files.add(kind=kind, pool=directory.pool, path=f"instances/{instance}/{name}")
            if kind == FoundFile.KIND_DISK:
                file.virtual_bytes, file.digest = VIRTUAL_BYTES, DIGEST if digests else b""
    return found
