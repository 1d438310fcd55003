"""Remuda's own etcd client: see client.py, and docs/adr/0001 for why there is one."""
