"""The rpcs of the image store: parse, call, translate."""
