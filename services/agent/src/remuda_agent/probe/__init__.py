"""What a host can really do, found out by doing it."""
