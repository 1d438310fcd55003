"""Crashes in the middle of live migrations of real guests; docs/reliability.md is made of them."""
