"""Steps: what the leader can ask of a host, each safe to repeat."""
