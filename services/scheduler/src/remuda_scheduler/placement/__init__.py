"""Placement: a pure function from a snapshot of the hosts and a demand to a plan, or to reasons."""
