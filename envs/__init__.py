"""robosuite tasks as gymnasium environments, their experts and their demonstrations."""

if __name__ != "asd_policy.envs":
    raise ImportError(f"import this package as asd_policy.envs, not as {__name__!r}")
