"""Who calls, what they may call, and the grants that the leader signs."""
