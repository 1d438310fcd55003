"""Crashes in the middle of a live migration: doing them at a chosen point, and judging what is left."""
