"""Hosts as the leader knows them: attachment, liveness, observations, and the way to their agents."""
