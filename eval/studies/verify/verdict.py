"""verify.json: what was sampled, tested and found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from scipy import stats

from asd_policy.eval.stats.basics import holm
from asd_policy.eval.studies.verify.draws import Drawn
from asd_policy.eval.studies.verify.equality import Test, compare
from asd_policy.eval.studies.verify.options import VerifyOptions
from asd_policy.eval.studies.verify.power import POWER, smallest_shifts, worst
from asd_policy.eval.studies.verify.subjects import Exact, Subject

Json = dict[str, Any]
EQUAL, DIFFERS, COULD_NOT_TELL = 0, 1, 2  # exit statuses
EXACT_DIRECTIONS = 8
SHIFTED_BY = 2.0  # times --detect


def exact_tests(drawn: Drawn, exact: Exact, name: str, seed: int) -> list[Test]:
    """One-sample tests against a known distribution: random directions, and the residuals' norm."""
    standard = (drawn.chunks[exact.index].astype(np.float64) - exact.mean) / exact.deviation
    standard = standard.reshape(len(standard), -1)
    directions = np.random.default_rng(seed).normal(size=(standard.shape[1], EXACT_DIRECTIONS))
    values = standard @ (directions / np.linalg.norm(directions, axis=0))
    family = f"exact law of {name}"
    found = [
        (f"{family}, direction {i}", stats.kstest(column, "norm"))
        for i, column in enumerate(values.T)
    ]
    norms = stats.kstest(np.square(standard).sum(1), "chi2", args=(standard.shape[1],))
    found.append((f"{family}, norm", norms))
    return [Test(title, family, float(t.statistic), float(t.pvalue)) for title, t in found]


def tests_json(tests: Sequence[Test], alpha: float) -> list[Json]:
    """Tests with their corrected p-values."""
    corrected = holm([test.p_value for test in tests])
    return [
        {**asdict(test), "p_holm": p, "differs": p <= alpha}
        for test, p in zip(tests, corrected, strict=True)
    ]


def power_json(options: VerifyOptions, subject: Subject, reference: Drawn, tests: int) -> Json:
    """The smallest shift that would have been caught, for each action number and the worst."""
    found = smallest_shifts(reference.chunks, tests, options.alpha, options.seed)
    units = subject.action_scale
    by_action = [
        {
            "action": one.column,
            "deviation": one.deviation * float(units[one.column]),
            "shift_deviations": one.shift,
            "shift": None
            if one.shift is None
            else one.shift * one.deviation * float(units[one.column]),
        }
        for one in found
    ]
    hardest = by_action[worst(found).column]
    smallest, drawn = hardest["shift_deviations"], reference.calls.size
    enough = smallest is not None and smallest <= options.detect
    growth = (8.0 if smallest is None else smallest) / options.detect
    needed = drawn if enough else 100 * math.ceil(1.1 * drawn * growth**2 / 100)
    return {
        "probability": POWER,
        "detect_deviations": options.detect,
        "enough": enough,
        "chunks_needed": needed,
        "hardest": hardest,
        "by_action": by_action,
    }


def controls_json(
    options: VerifyOptions,
    subject: Subject,
    reference: Drawn,
    drawn: dict[str, Drawn],
    hardest: Json,
) -> list[Json]:
    """What the same tests say of samples whose distribution is known to be equal or different."""
    if not drawn:
        return []
    again, *others = drawn
    shift = SHIFTED_BY * options.detect * hardest["deviation"]
    moved = drawn[again].chunks.astype(np.float64)
    column = hardest["action"]
    moved[..., column] += shift / float(subject.action_scale[column])
    name = f"{options.reference}-shifted by {SHIFTED_BY * options.detect:g} sd in action[{column}]"
    samples = {again: drawn[again].chunks, name: moved}
    samples |= {other: drawn[other].chunks for other in others}
    expected = {again: "equal"}
    return [
        _control(options, subject, title, chunks, reference, expected.get(title, "differs"))
        for title, chunks in samples.items()
    ]


def _control(
    options: VerifyOptions,
    subject: Subject,
    name: str,
    chunks: np.ndarray,
    reference: Drawn,
    expected: str,
) -> Json:
    tests = compare(chunks, reference.chunks, subject.gripper, options.alpha, options.seed)
    table = tests_json(tests, options.alpha)
    telling = min(table, key=lambda test: (test["p_holm"], test["p_value"]))
    found = "differs" if telling["differs"] else "equal"
    return {
        "name": name,
        "expected": expected,
        "found": found,
        "as_expected": found == expected,
        "rejecting": sum(test["differs"] for test in table),
        "tests": len(table),
        "smallest_p": telling["p_value"],
        "smallest_p_holm": telling["p_holm"],
        "most_telling": telling["name"],
    }


def sampler_json(name: str, drawn: Drawn) -> Json:
    """What a sampler drew, and what that cost."""
    return {
        "name": name,
        "chunks": int(drawn.calls.size),
        "chunks_per_observation": int(drawn.calls.shape[1]),
        "calls_per_chunk": float(drawn.calls.mean()),
        "evaluations_per_chunk": float(drawn.evaluations.mean()),
        "seconds": drawn.seconds,
    }


def verdict_json(options: VerifyOptions, tests: list[Json], power: Json, controls: list[Json],
                 chunks: int) -> Json:  # fmt: skip
    """Exit status, and the sentence that says why."""
    names = f"{options.sampler} and {options.reference}"
    telling = min(tests, key=lambda test: (test["p_holm"], test["p_value"]))
    rejecting = sum(test["differs"] for test in tests)
    wrong = [control for control in controls if not control["as_expected"]]
    # What must be equal shares the reference's draw: where that is a rare one, both reject.
    false_alarm = any(control["expected"] == "equal" for control in wrong)
    smallest = (
        f"the smallest p after Holm's correction is {telling['p_holm']:.2g} ({telling['name']})"
    )
    found = f"{rejecting} of {len(tests)} tests reject at alpha {options.alpha:g}"
    if rejecting and not false_alarm:
        status, word = DIFFERS, "DIFFERS"
        sentence = (
            f"{options.sampler} does not have {options.reference}'s distribution: "
            f"{found}; {smallest}."
        )
    elif not rejecting and not power["enough"]:
        status, word = COULD_NOT_TELL, "COULD NOT TELL, TOO FEW CHUNKS"
        sentence = (
            f"no test tells {names} apart, but with {chunks} chunks of each {_shift(power)}, and "
            f"--detect asks for {options.detect:g}; about {power['chunks_needed']} chunks would do."
        )
    elif wrong:
        status, word = COULD_NOT_TELL, "COULD NOT TELL, A CONTROL FAILED"
        listed = "; ".join(f"{c['name']} was found {_FOUND[c['found']]}" for c in wrong)
        told = f"of {names}, {found}" if rejecting else f"no test tells {names} apart"
        sentence = f"{told}, but these tests are not to be trusted: {listed}."
    else:
        status, word = EQUAL, "EQUAL AS FAR AS COULD BE TOLD"
        sentence = (
            f"none of {len(tests)} tests tells {names} apart ({chunks} chunks of each; "
            f"{smallest}); {_shift(power)}."
        )
    return {"status": status, "word": word, "sentence": sentence}


_FOUND = {"equal": "equal to the reference", "differs": "different from the reference"}


def _shift(power: Json) -> str:
    hardest = power["hardest"]
    if hardest["shift"] is None:
        return f"not even a large shift of action[{hardest['action']}] would be caught"
    return (
        f"the smallest shift sure to be caught (probability {power['probability']:.0%}, in the "
        f"action number where it is hardest to see) is {hardest['shift_deviations']:.2g} standard "
        f"deviations, {hardest['shift']:.2g} units of action[{hardest['action']}]"
    )
