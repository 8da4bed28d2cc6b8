"""`asd-policy verify`: does a sampler have the distribution of the sequential chain?

The pieces: `options` (what is asked), `subjects` and `oracle` (a network with what it takes to
sample chunks), `moments` (the observations), `store` (the output folder), `draws` (chunks, in
batches that survive a kill), `controls` (samplers that are known to be wrong), `equality` (the
tests), `power` (the smallest shift that they catch), `verdict` (verify.json from all of that),
`tables` and `figures` (what is shown), `run` (from options to exit status).
"""
