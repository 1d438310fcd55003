"""The rpcs: parse, call, translate."""
