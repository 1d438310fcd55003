"""Pools, instance directories, base images and config drives of one host."""
