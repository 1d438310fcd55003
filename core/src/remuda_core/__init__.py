"""What every Remuda service shares: pure rules, the etcd client, the RPC chain."""
