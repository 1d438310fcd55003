"""Image bytes, up and down, resumable."""
