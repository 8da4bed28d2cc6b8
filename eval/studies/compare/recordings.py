"""`asd-policy compare` of two recordings of robomimic's rollouts, on the seeds that both have."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from asd_policy.errors import DatasetError, InputError, counted
from asd_policy.eval.runs.schemas import read_json
from asd_policy.eval.stats.basics import mean, paired_success, success_rate
from asd_policy.eval.studies.compare.options import CompareOptions, check_compare_options
from asd_policy.eval.studies.compare.outcome import success_of, verdict_of
from asd_policy.eval.studies.compare.scenes import same_scenes


def compare_recordings(options: CompareOptions) -> int:
    """Print each one's success with its interval and the policy's time apart from the simulation's,
    then the difference of the success rates on the same seeds, with its interval, and what it
    shows. Returns the exit status.

    Args:
        options: whose ``runs`` are two files, as `run_trained_agent --record FILE` of
            `python -m asd_policy.integrations.robomimic` writes them, with the same --seed.

    Raises:
        ValueError: an option that is for evaluations.
        DatasetError: no recording, nothing in common, or a seed whose scenes differ.
    """
    check_compare_options(options)
    for field in dataclasses.fields(options):
        if field.name not in ("runs", "margin") and getattr(options, field.name) != field.default:
            option = "--" + field.name.replace("_", "-")
            raise InputError(f"{option} is for evaluations; of two recordings, leave it out")
    first, second = options.runs
    runs = {"a": _read(first), "b": _read(second)}
    for name, run in runs.items():
        print(f"{name}: {run.get('policy', 'a policy')}\n   {_summary(run['episodes'])}")
    a, b = (
        {episode["seed"]: bool(episode["success"]) for episode in run["episodes"]}
        for run in runs.values()
    )
    pair = paired_success(a, b)
    if not pair["n"]:
        raise DatasetError(f"{first} and {second} have no seeds in common")
    ours, theirs = ({e["seed"]: e.get("scene") for e in run["episodes"]} for run in runs.values())
    known = same_scenes(
        ours, theirs, "record both with one robomimic, robosuite and MuJoCo, and one task"
    )
    made = pair["difference"]
    low, high = (100 * bound for bound in made["ci95"])
    print(
        f"Same {counted(pair['n'], 'seed')}: both {pair['both']}, only a {pair['only_a']}, only b "
        f"{pair['only_b']}, neither {pair['neither']}; success of a minus b "
        f"{100 * made['estimate']:+.1f} points, 95% interval {low:+.1f} to {high:+.1f}"
    )
    if known < pair["n"]:
        print(
            f"Whether {pair['n'] - known} of these seeds began with the same scene in both is not "
            "known: a recording does not hold their first observations"
        )
    verdict = verdict_of(("a", "b"), success_of(a, b, options.margin), options.margin)
    print(f"{verdict['word']}: {verdict['sentence']}")
    return int(verdict["status"])


def _read(path: Path) -> dict[str, Any]:
    try:
        run: dict[str, Any] = read_json(path, "recording")
    except InputError as error:
        raise DatasetError(f"no recording: {error}") from error
    if any(episode["seed"] is None for episode in run["episodes"]):
        raise DatasetError(f"{path} has episodes without seeds: record with --seed")
    return run


def _summary(episodes: list[dict[str, Any]]) -> str:
    success = success_rate(sum(episode["success"] for episode in episodes), len(episodes))
    low, high = (100 * bound for bound in success["ci95"])
    later = episodes[1:] or episodes  # the first one pays for what is prepared once
    policy, simulation, steps = (
        sum(episode[name] for episode in later) for name in ("policy_s", "simulation_s", "steps")
    )
    text = (
        f"{success['count']}/{success['n']} succeeded ({low:.0f}–{high:.0f}%); after the first "
        f"episode: policy {policy:.1f} s, {1e3 * policy / max(steps, 1):.1f} ms a control step, "
        f"simulation {simulation:.1f} s"
    )
    calls = mean([count for episode in episodes for count in episode["calls"]])
    return text if calls is None else f"{text}; {calls:.1f} calls a chunk"
