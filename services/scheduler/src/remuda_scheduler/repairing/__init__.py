"""Chunks that the image store has found damaged are offered again by hosts whose cache has them."""
