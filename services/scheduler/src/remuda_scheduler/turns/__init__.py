"""How many guests may be on their way at once, and who goes first."""
