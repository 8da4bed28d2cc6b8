"""`asd-policy eval`, `rates` and `replay`.

Importing this is quick: torch and the simulator come when the run starts.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from asd_policy.eval.options import RatesOptions, ReplayOptions
from asd_policy.eval.resume import find_evaluation, find_options, parse
from asd_policy.eval.studies.compare.options import EvalAndCompareOptions


def main_eval(words: Sequence[str]) -> int:
    """Roll a policy out, one episode for each seed and sampler, and compare the samplers.

    With no options, it samples the shipped Lift policy by ASD and by sequential DDPM on the same 20
    seeds. It prints one table, and keeps every episode under outputs/eval/.
    """
    options = parse("eval", words, EvalAndCompareOptions, main_eval.__doc__, find_evaluation)
    if options.compare:
        from asd_policy.eval.studies.compare.decide import evaluate_and_compare

        return evaluate_and_compare(options)
    from asd_policy.eval.studies.evaluate import evaluate

    evaluate(options.evaluation)
    return 0


def main_report(run_folder: tyro.conf.Positional[Path]) -> None:
    """Write report.html, one page that needs nothing but itself, into the folder of an evaluation.

    `asd-policy eval` has written it already; this does it again, from config.json, env.json,
    episodes.jsonl and the films. Nothing is run, and no other file is changed.

    Args:
        run_folder: a folder that `asd-policy eval` wrote.
    """
    from asd_policy.eval.show.page import write_page

    print(write_page(run_folder))


def main_rates(words: Sequence[str]) -> None:
    """Measure success against control rate, while the world goes on as the policy thinks.

    Each rate has an evaluation in a folder of its own, with the delays of this machine; rates.json
    and a figure lie beside them. The faster the control steps, the later a slow sampler's chunks
    come: this shows what its speed is worth.
    """
    find = functools.partial(
        find_options, RatesOptions, root=Path("outputs/rates"), command="rates"
    )
    options = parse("rates", words, RatesOptions, main_rates.__doc__, find)
    from asd_policy.eval.studies.rates import run_rates

    run_rates(options)


def main_replay(options: Annotated[ReplayOptions, tyro.conf.arg(name="")]) -> int:
    """Sample chunks of a recorded evaluation again, and say whether they are bitwise the same.

    With no options, it samples 10 chunks, chosen at random. It keeps what it found in the run's
    replay.json. Exit status 0: all are the same; 1: some differ, or their record is damaged.
    """
    from asd_policy.eval.studies.replay import replay

    return 1 if replay(options)["different"] else 0
