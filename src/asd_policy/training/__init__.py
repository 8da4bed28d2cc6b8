"""Training of diffusion policies on demonstrations."""
