"""Live migration, the pure part: what became of it, and how far it is."""
