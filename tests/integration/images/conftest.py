"""A gateway with image stores behind it, over one etcd: the fixtures of both suites."""

from tests.integration.api.conftest import admin, alice, bob, cluster, pieces
from tests.integration.image_store.conftest import cloud

__all__ = ["admin", "alice", "bob", "cloud", "cluster", "pieces"]
