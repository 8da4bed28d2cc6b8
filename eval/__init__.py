"""Placeholder."""

if __name__ != "asd_policy.eval":
    raise ImportError(f"import this package as asd_policy.eval, not as {__name__!r}")
