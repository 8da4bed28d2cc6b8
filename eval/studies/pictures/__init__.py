"""Pictures at K = 1000: small pixel DDPMs, what ASD costs on them, and how good its samples are."""
