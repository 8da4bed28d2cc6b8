"""What a run found, in a sentence for each sampler: the first that its page says.

A sentence is a list of words and of `Value`s, each a place in results.json and how it is written,
so that the page can say where every number comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from asd_policy.eval.runs.evaluation import NamedPair, Results
from asd_policy.eval.runs.formats import amount, duration

Json = dict[str, Any]
REFERENCE = "ddpm"

STYLES: dict[str, Callable[[Any], str]] = {
    "int": str,
    "amount": amount,
    "duration": duration,
    "faster": lambda ratio: f"{ratio:.1f}x faster",
    "slower": lambda ratio: f"{1 / ratio:.1f}x slower",
    "successes of a": lambda pair: str(pair["both"] + pair["only_a"]),
    "successes of b": lambda pair: str(pair["both"] + pair["only_b"]),
}


@dataclass(frozen=True)
class Value:
    """The value at a place in results.json, written in one of STYLES."""

    style: str
    place: tuple[str | int, ...]

    def text(self, results: Results) -> str:
        """The value as it is written."""
        found: Any = results
        for key in self.place:
            found = found[key]
        return STYLES[self.style](found)


Sentence = list["str | Value"]


def headlines(results: Results, busy: bool = False) -> dict[str, Sentence]:
    """Sampler → its sentence, without its name: compared with DDPM where the run has it.

    DDPM itself has a sentence where it is alone. `busy`: other work had the processor so often that
    times are not a free machine's. That, and a batch, is said once: in the first.
    """
    names = list(results["samplers"])
    compared = REFERENCE in names and names != [REFERENCE]
    sentence = _against_ddpm if compared else _alone
    told = [name for name in names if not compared or name != REFERENCE]
    timed = _circumstances(results, busy)
    return {name: sentence(results, name, timed if name == told[0] else []) for name in told}


def as_text(sentence: Sentence, results: Results) -> str:
    """The sentence as plain text."""
    return "".join(part if isinstance(part, str) else part.text(results) for part in sentence)


def _alone(results: Results, name: str, timed: Sentence) -> Sentence:
    summary = results["samplers"][name]
    at = ("samplers", name)
    success, latency = summary["success"], summary["chunk_latency_ms"]["p50"]
    if not success["n"]:
        return ["no episode is finished yet"]
    sentence: Sentence = [
        Value("int", (*at, "success", "count")), " of ", Value("int", (*at, "success", "n")),
        " episodes succeeded",
    ]  # fmt: skip
    if summary["network_calls_per_chunk"] is not None and latency is not None:
        sentence += [
            ", ", Value("amount", (*at, "network_calls_per_chunk")), " calls and ",
            Value("duration", (*at, "chunk_latency_ms", "p50")), " a chunk",
            *timed,
        ]  # fmt: skip
    other = "no other sampler" if name == REFERENCE else "no DDPM"
    return [*sentence, f"; {other} in this run to compare with"]


def _against_ddpm(results: Results, name: str, timed: Sentence) -> Sentence:
    index = _pair(results, name)
    pair = results["paired"][index]
    if not pair["n"]:
        return ["no seed is finished by both it and DDPM yet"]
    return [
        *_success(index, pair, name, " so far" * (not results["complete"])),
        *_speed(results, name, timed),
        *_calls(results, name),
    ]


def _pair(results: Results, name: str) -> int:
    """Which of the pairs is of this sampler and DDPM."""
    return next(
        index
        for index, pair in enumerate(results["paired"])
        if {pair["a"], pair["b"]} == {name, REFERENCE}
    )


def _success(index: int, pair: NamedPair, name: str, so_far: str) -> Sentence:
    """On the seeds that both have finished."""
    n = Value("int", ("paired", index, "n"))
    seeds = " seed" + "s" * (pair["n"] > 1) + so_far
    if pair["only_a"] == pair["only_b"]:
        return ["same success as DDPM on ", n, seeds]
    ours, theirs = ("a", "b") if pair["a"] == name else ("b", "a")
    assert pair["difference"] is not None, "both have finished some"
    low, high = pair["difference"]["ci95"]
    return [
        Value(f"successes of {ours}", ("paired", index)), " successes against DDPM's ",
        Value(f"successes of {theirs}", ("paired", index)), " on ", n, seeds,
        f" (a difference {'within' if low <= 0 <= high else 'beyond'} chance)",
    ]  # fmt: skip


def _speed(results: Results, name: str, timed: Sentence) -> Sentence:
    ratio = results["samplers"][name]["speedup"]["wall_clock"]
    if not ratio:
        return []
    if f"{ratio:.1f}" == "1.0":
        return [", about as fast", *timed]
    style = "faster" if ratio > 1 else "slower"
    return [", ", Value(style, ("samplers", name, "speedup", "wall_clock")), *timed]


def _circumstances(results: Results, busy: bool) -> Sentence:
    """What a time is not to be read without."""
    said: list[Sentence] = []
    if results["num_envs"] > 1:
        said.append([Value("int", ("num_envs",)), " robots in one batch"])
    if busy:
        said.append(["on a machine busy with other work"])
    if not said:
        return []
    return [" (", *said[0], *(part for each in said[1:] for part in [", ", *each]), ")"]


def _calls(results: Results, name: str) -> Sentence:
    calls = [results["samplers"][each]["network_calls_per_chunk"] for each in (name, REFERENCE)]
    if None in calls:
        return []
    return [
        ", ", Value("amount", ("samplers", name, "network_calls_per_chunk")), " calls for ",
        Value("amount", ("samplers", REFERENCE, "network_calls_per_chunk")),
    ]  # fmt: skip
