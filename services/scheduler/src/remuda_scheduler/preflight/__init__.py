"""Preflight of moves: what has to hold before an instance is touched, found out by real probes."""
