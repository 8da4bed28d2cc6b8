"""Oracles and models shared by the tests; importable because pytest puts tests/ on the path."""
