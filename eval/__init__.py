"""The evaluator: success, latency and cost of samplers on the same episodes (the `sim` extra).

    from asd_policy.eval.studies.evaluate import evaluate
    from asd_policy.eval.options import EvalOptions

    results = evaluate(EvalOptions(task="lift", samplers=("asd", "ddpm"), episodes=20))

The pieces: `options` (what is asked), `plan` (what that comes to, once), `rollout` (policies and
environments to episode records), `runs` (what is kept: the forms of the files, a run's folder, and
how it survives a kill), `stats` (a summary: a pure function of what was kept), `show` (what people
see), `studies` (what the commands do). Imports go one way; tests/eval/test_rooms.py says which.
"""

if __name__ != "asd_policy.eval":
    raise ImportError(f"import this package as asd_policy.eval, not as {__name__!r}")
