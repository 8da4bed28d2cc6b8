"""The benchmark: what a chunk costs, by sampler, engine, precision, batch, window, network and K.

The pieces: `options` (what is asked), `cells` (the matrix), `subjects` (networks and conditions),
`contestants` (one cell ready to sample chunks), `eager_loop` (the loop that packages run today),
`runner` (interleaved measurement), `summary` (from chunks to numbers), `flops` and `ceilings`
(what the hardware could do), `store` (bench.json), `scaling` (calls against K), `tables` and
`figures` (what is shown), `training` and `gpu` (the same on a machine with nothing but PyTorch).

Only torch, numpy and safetensors are needed; rich and matplotlib are used where installed.
"""
