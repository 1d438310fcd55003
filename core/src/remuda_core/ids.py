"""Names for what would otherwise be bare strings and numbers: the checker keeps them apart at no cost."""

from typing import NewType

ProjectId = NewType("ProjectId", str)
"""A short name, `projects/{project}`."""
InstanceId = NewType("InstanceId", str)
"""UUID; also the domain's UUID in libvirt."""
HostId = NewType("HostId", str)
"""UUID; bound to the host's certificate, never its host name."""
OperationId = NewType("OperationId", str)
ImageId = NewType("ImageId", str)
MigrationId = NewType("MigrationId", str)
FlavorId = NewType("FlavorId", str)
NetworkId = NewType("NetworkId", str)
PortId = NewType("PortId", str)

Epoch = NewType("Epoch", int)
"""Ownership epoch of an instance: rises by one for every placement."""
LeaderEpoch = NewType("LeaderEpoch", int)
"""create_revision of the leader's key in etcd: rises with every election."""
Revision = NewType("Revision", int)
"""A revision of the etcd store."""
