"""Samplers of a diffusion chain. :func:`asd_policy.sample` runs them on an engine."""
