"""The host's base images: bounded, evicted least recently used first, and never while anybody needs them."""
