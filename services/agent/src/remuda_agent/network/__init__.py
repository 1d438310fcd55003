"""How guests reach the world: bridges that the operator has made."""
