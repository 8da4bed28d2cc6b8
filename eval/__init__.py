"""The evaluator: success, latency and cost of samplers on the same episodes (the `sim` extra).

    from asd_policy.eval.evaluator import evaluate
    from asd_policy.eval.options import EvalOptions

    results = evaluate(EvalOptions(task="lift", samplers=("asd", "ddpm"), episodes=20))

The pieces: `options` (what is asked), `samplers` (names to sampler settings), `rollout` (policy and
environments to episode records), `folder` (what is kept, and how it survives a kill), `results` (a
pure function of what was kept), `show` (what people see).
"""

if __name__ != "asd_policy.eval":
    raise ImportError(f"import this package as asd_policy.eval, not as {__name__!r}")
