"""Pages over a pinned snapshot, and the small filter grammar."""
