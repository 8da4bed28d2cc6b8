"""Policies and environments in a loop: episode records."""
