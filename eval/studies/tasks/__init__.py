"""The table of tasks: every sampler on every task that has a shipped policy."""
