"""Mutations: every check, then one transaction that leaves all of it or nothing."""
