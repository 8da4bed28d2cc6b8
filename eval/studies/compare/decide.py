"""Running more seeds until a comparison is decided: what more there is to know is small by then."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from asd_policy.console import plain_console, say
from asd_policy.errors import InputError
from asd_policy.eval.options import EvalOptions, command_line
from asd_policy.eval.resume import continued_with, evaluation_in
from asd_policy.eval.runs.folder import STORE
from asd_policy.eval.studies.compare.options import (
    CompareOptions,
    EvalAndCompareOptions,
    check_compare_options,
)
from asd_policy.eval.studies.compare.outcome import compare_sides
from asd_policy.eval.studies.compare.pairing import pairs_of
from asd_policy.eval.studies.compare.run import run_compare
from asd_policy.eval.studies.evaluate import evaluate

LEAST = 20  # seeds between two looks; a fifth of those that are done, where that is more
Evaluate = Callable[..., object]


def evaluate_and_compare(
    options: EvalAndCompareOptions, run: Evaluate = evaluate, console: Console | None = None
) -> int:
    """Run an evaluation of two samplers, compare them, and return the exit status.

    Raises:
        ValueError: what the user can fix.
    """
    evaluation = options.evaluation
    assert evaluation.out is not None
    compared = options.comparison(evaluation.out)
    check_compare_options(compared)
    if options.until_decided:
        return _until_decided([evaluation], compared, run, console)
    going_on = dataclasses.replace(options, out=evaluation.out, resume=True)
    with continued_with(command_line(going_on), "", lambda: _begun([evaluation])):
        run(evaluation, part=True)
    return run_compare(compared, console)


def continue_until_decided(
    options: CompareOptions, run: Evaluate = evaluate, console: Console | None = None
) -> int:
    """The same of evaluations that are there: they go on, each with its own options.

    Raises:
        ValueError: what the user can fix.
    """
    check_compare_options(options)
    if len(pairs_of(options)) > 1:
        raise InputError("--until-decided compares one pair of samplers; name it: --samplers A B")
    found = [evaluation_in(folder) for folder in dict.fromkeys(options.runs)]
    there = [dataclasses.replace(evaluation, resume=True) for evaluation in found]
    return _until_decided(there, options, run, console)


def _until_decided(
    evaluations: Sequence[EvalOptions],
    options: CompareOptions,
    run: Evaluate,
    console: Console | None,
) -> int:
    done, silent = 0, plain_console()
    start = max(evaluation.seed for evaluation in evaluations)  # of the seeds that are common
    silent.quiet = True  # of the tables between two looks
    with continued_with(_again(options), "", lambda: _begun(evaluations)):
        while True:
            for evaluation in evaluations:
                wanted = start - evaluation.seed + done if done else 0
                more = max(evaluation.episodes, wanted)
                resume = evaluation.resume or done > 0  # what is there is not gone on with unasked
                grown = dataclasses.replace(evaluation, episodes=more, resume=resume)
                run(grown, part=True, console=silent)
            ((a, b),) = pairs_of(options)
            found = compare_sides(a, b, options.margin, options.seed)
            done = max(found["seeds"]["common"], done)
            say(_look(found))
            if found["sequential"]["decision"] or done >= options.budget:
                return run_compare(options, console)
            done = min(options.budget, done + max(LEAST, done // 5))


def _begun(evaluations: Sequence[EvalOptions]) -> bool:
    return all(each.out is not None and STORE.read(each.out) for each in evaluations)


def _look(found: dict[str, Any]) -> str:
    success, e = found["success"], found["sequential"]["log10_e"]
    counts = ", ".join(f"{found[s]['sampler']} {success[s]['count']}" for s in ("a", "b"))
    return (
        f"After {found['seeds']['common']} seeds: {counts}; e-values (20 decide): not worse "
        f"{10 ** min(e['not_worse'], 6):.2g}, a difference {10 ** min(e['difference'], 6):.2g}"
    )


def _again(options: CompareOptions) -> str:
    words = ["asd-policy", "compare", *map(str, options.runs), "--until-decided"]
    if options.samplers:
        words += ["--samplers", *options.samplers]
    words += ["--margin", str(options.margin), "--budget", str(options.budget)]
    if options.seed != CompareOptions.seed:
        words += ["--seed", str(options.seed)]
    if options.json is not None:
        words += ["--json", str(options.json)]
    words += ["--allow-different-checkpoints"] * options.allow_different_checkpoints
    return shlex.join(words)
