"""Diffusion policies sampled exactly and fast by autospeculative decoding (ASD)."""
