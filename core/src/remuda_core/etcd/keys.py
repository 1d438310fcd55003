"""The key layout (docs/keys.md, which a test compares with this file).

Every key begins with the cluster's prefix. Values are messages of remuda.store.v1. A resource that two
services write is two keys, one per writer (instances/ by the api, instance_status/ by the leader), so that
no writer ever has to merge with another; what a service watches as a prefix holds one kind of value.
"""

from dataclasses import dataclass

from remuda_core.ids import (
    FlavorId,
    HostId,
    ImageId,
    InstanceId,
    MigrationId,
    NetworkId,
    OperationId,
    ProjectId,
)

DEFAULT_PREFIX = "/remuda/v1/"


@dataclass(frozen=True, slots=True)
class Keys:
    """Builds keys under `prefix`, which ends with "/". Prefix properties end with "/" too."""

    prefix: str = DEFAULT_PREFIX

    def __post_init__(self) -> None:
        if not self.prefix.startswith("/") or not self.prefix.endswith("/"):
            raise ValueError(f"key prefix {self.prefix!r} must begin and end with '/'")

    # Instances: what the owner owns, what the leader knows, who holds it.
    @property
    def instances(self) -> str:
        return f"{self.prefix}instances/"

    def instance(self, project: ProjectId, instance: InstanceId) -> str:
        return f"{self.instances}{project}/{instance}"

    def instance_name(self, project: ProjectId, display_name: str) -> str:
        """Value: the instance's UUID. Makes display names unique in a project."""
        return f"{self.prefix}instance_names/{project}/{display_name}"

    @property
    def instance_statuses(self) -> str:
        return f"{self.prefix}instance_status/"

    def instance_status(self, instance: InstanceId) -> str:
        return f"{self.instance_statuses}{instance}"

    @property
    def claims(self) -> str:
        return f"{self.prefix}claims/"

    def claim(self, instance: InstanceId) -> str:
        return f"{self.claims}{instance}"

    @property
    def migrations(self) -> str:
        return f"{self.prefix}migrations/"

    def migration(self, instance: InstanceId, migration: MigrationId) -> str:
        return f"{self.migrations}{instance}/{migration}"

    def events(self, instance: InstanceId) -> str:
        return f"{self.prefix}events/{instance}/"

    def event(self, instance: InstanceId, sequence: int) -> str:
        # Zero-padded, so that the order of the keys is the order of the events.
        return f"{self.events(instance)}{sequence:012d}"

    # Operations. Journal and cancel flag are keys of their own: see store/v1/operation.proto.
    @property
    def operations(self) -> str:
        return f"{self.prefix}operations/"

    def operation(self, operation: OperationId) -> str:
        return f"{self.operations}{operation}"

    @property
    def journals(self) -> str:
        return f"{self.prefix}journals/"

    def journal(self, operation: OperationId) -> str:
        return f"{self.journals}{operation}"

    @property
    def cancels(self) -> str:
        return f"{self.prefix}cancels/"

    def cancel(self, operation: OperationId) -> str:
        return f"{self.cancels}{operation}"

    def request(self, principal: str, request_id: str) -> str:
        return f"{self.prefix}requests/{principal}/{request_id}"

    # Hosts.
    @property
    def hosts(self) -> str:
        return f"{self.prefix}hosts/"

    def host(self, host: HostId) -> str:
        return f"{self.hosts}{host}"

    def host_name(self, display_name: str) -> str:
        """Value: the host's UUID."""
        return f"{self.prefix}host_names/{display_name}"

    @property
    def host_statuses(self) -> str:
        return f"{self.prefix}host_status/"

    def host_status(self, host: HostId) -> str:
        return f"{self.host_statuses}{host}"

    @property
    def debts(self) -> str:
        return f"{self.prefix}debts/"

    def debt(self, host: HostId, operation: OperationId, step: str) -> str:
        return f"{self.debts}{host}/{operation}/{step}"

    # What instances are made from.
    @property
    def flavors(self) -> str:
        return f"{self.prefix}flavors/"

    def flavor(self, flavor: FlavorId) -> str:
        return f"{self.flavors}{flavor}"

    @property
    def networks(self) -> str:
        return f"{self.prefix}networks/"

    def network(self, network: NetworkId) -> str:
        return f"{self.networks}{network}"

    @property
    def all_ports(self) -> str:
        return f"{self.prefix}ports/"

    def ports(self, network: NetworkId) -> str:
        return f"{self.all_ports}{network}/"

    def port(self, network: NetworkId, address: str) -> str:
        return f"{self.ports(network)}{address}"

    def mac(self, mac_address: str) -> str:
        """Value: the port's UUID. Makes MAC addresses unique in the cluster."""
        return f"{self.prefix}macs/{mac_address}"

    # Images.
    @property
    def images(self) -> str:
        return f"{self.prefix}images/"

    def image(self, image: ImageId) -> str:
        return f"{self.images}{image}"

    def image_name(self, project: ProjectId, display_name: str) -> str:
        """Value: the image's UUID."""
        return f"{self.prefix}image_names/{project}/{display_name}"

    def upload(self, image: ImageId) -> str:
        return f"{self.prefix}uploads/{image}"

    @property
    def image_sweep(self) -> str:
        """Held under a lease while chunks are removed, or verified before an image becomes ACTIVE."""
        return f"{self.prefix}gc/images"

    # The image store's garbage collection. Shards: first byte of a digest, as two hex digits.
    @property
    def gc_shards(self) -> str:
        return f"{self.prefix}gc/shard/"

    def gc_shard(self, shard: str) -> str:
        """Held under a lease by whoever sweeps the shard."""
        return f"{self.gc_shards}{shard}"

    @property
    def gc_all_marks(self) -> str:
        return f"{self.prefix}gc/marks/"

    def gc_marks(self, shard: str) -> str:
        return f"{self.gc_all_marks}{shard}"

    @property
    def gc_scrub(self) -> str:
        """Held under a lease by the one replica that scrubs."""
        return f"{self.prefix}gc/scrub"

    @property
    def gc_scrubbed(self) -> str:
        return f"{self.prefix}gc/scrubbed"

    @property
    def blob_names(self) -> str:
        """What every image store watches: names not to be relied on, and names to be used instead."""
        return f"{self.prefix}blobs/"

    @property
    def all_doomed(self) -> str:
        return f"{self.blob_names}doomed/"

    def doomed(self, batch: str) -> str:
        return f"{self.all_doomed}{batch}"

    @property
    def last_dooms(self) -> str:
        return f"{self.blob_names}last/"

    def last_doom(self, shard: str) -> str:
        """Empty; its revision is that of the last doom of the shard."""
        return f"{self.last_dooms}{shard}"

    @property
    def all_again(self) -> str:
        return f"{self.blob_names}again/"

    def again(self, name: str) -> str:
        """Value: name of the blob that holds the content instead of the blob `name`."""
        return f"{self.all_again}{name}"

    def image_usage(self, project: ProjectId) -> str:
        return f"{self.prefix}image_usage/{project}"

    def quota(self, project: ProjectId) -> str:
        return f"{self.prefix}quotas/{project}"

    @property
    def all_image_damage(self) -> str:
        return f"{self.prefix}image_damage/"

    def image_damage(self, digest_hex: str) -> str:
        return f"{self.all_image_damage}{digest_hex}"

    def image_refs(self, image: ImageId) -> str:
        return f"{self.prefix}image_refs/{image}/"

    def image_ref(self, image: ImageId, instance: InstanceId) -> str:
        return f"{self.image_refs(image)}{instance}"

    @property
    def leader(self) -> str:
        return f"{self.prefix}scheduler/leader"
