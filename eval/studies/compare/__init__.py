"""`asd-policy compare`: two samplers, or one sampler in two evaluations, on the same seeds.

The pieces: `options` (what is asked), `pairing` (which episodes belong together, and whether they
may be compared), `paired` (the statistics), `outcome` (the comparison as JSON, with its verdict),
`tables` (what is shown), `run` (from options to exit status).
"""
