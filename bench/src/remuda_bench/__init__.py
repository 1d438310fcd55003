"""What Remuda costs, measured against the tools it stands on; see README.md beside."""
