"""The verbs of instances, one file each. `SAGAS` in registry.py is what the engine is given."""
