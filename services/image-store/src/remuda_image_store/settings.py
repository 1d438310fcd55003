"""What the image store is told: configuration file, REMUDA_IMAGE_STORE_..., flags."""

from pathlib import Path

from pydantic import Field
from remuda_core.config import EtcdSettings, ServiceSettings

ENVIRONMENT = "REMUDA_IMAGE_STORE_"


class Settings(ServiceSettings):
    etcd: EtcdSettings = EtcdSettings()
    backend: str
    """file:///directory, shared by all replicas; or any URL of obstore's, e.g. s3://bucket/prefix."""
    scratch_dir: Path
    """For files that are being checked and cut into chunks; of this replica alone."""
    scratch_bytes: int = Field(default=256 << 30, gt=0)
    """Most that one import may take there: the file, and the data of its disk."""
    largest_disk_bytes: int = Field(default=4 << 40, gt=0)
    """Largest virtual disk that is accepted."""
    grant_public_key: Path
    """PEM, Ed25519: what the leader's grants are verified with."""
    count_seconds: float = Field(default=30.0, gt=0)
    """Between two counts of what the backend holds."""
    gc_grace_seconds: float = Field(default=3600.0, gt=0)
    """How long nothing must have referred to a chunk before it goes."""
    gc_every_seconds: float = Field(default=600.0, gt=0)
    """Between two passes of garbage collection."""
    scrub_bytes_per_second: float = Field(default=16 << 20, gt=0)
    """Most that re-reading stored chunks takes of the backend."""
    scrub_round_seconds: float = Field(default=14 * 24 * 3600.0, gt=0)
    """Between the beginnings of two rounds over all chunks."""
