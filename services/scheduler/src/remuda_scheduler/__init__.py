"""Placement and the execution of every operation (sagas), under one elected leader."""
