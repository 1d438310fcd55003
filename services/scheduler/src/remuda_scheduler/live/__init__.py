"""Live views of what the leader does: they never go through etcd."""
