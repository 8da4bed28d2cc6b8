"""The table of tasks: every sampler on every task that has a shipped policy."""

REFERENCE = "ddpm"  # what the others are compared with
