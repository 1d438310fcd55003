"""Preflight's probes, one module each: what this host sees of itself and of another."""
