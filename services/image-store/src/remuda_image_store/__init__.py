"""Image bytes: chunked, content-addressed, deduplicated."""
