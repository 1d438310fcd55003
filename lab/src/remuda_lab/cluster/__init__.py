"""The services of Remuda in the fabric and on the hosts: configuration, identities, start and stop."""

from remuda_lab.cluster.client import LabClient
from remuda_lab.cluster.cluster import Cluster

__all__ = ["Cluster", "LabClient"]
