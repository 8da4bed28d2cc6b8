"""`asd-policy compare` of two recordings of robomimic's rollouts, on the seeds that both have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from asd_policy.errors import DatasetError, counted
from asd_policy.eval.runs.schemas import VERSION, read
from asd_policy.eval.stats.basics import mean, paired_success, success_rate
from asd_policy.eval.studies.compare.scenes import same_scenes


def compare_recordings(first: Path, second: Path) -> None:
    """Print each one's success with its interval and the policy's time apart from the simulation's,
    then the difference of the success rates on the same seeds, with its interval.

    Args:
        first: recording, as `run_trained_agent --record FILE` of
            `python -m asd_policy.integrations.robomimic` writes it.
        second: another, made with the same --seed.

    Raises:
        DatasetError: no recording, nothing in common, or a seed whose scenes differ.
    """
    runs = {"a": _read(first), "b": _read(second)}
    for name, run in runs.items():
        print(f"{name}: {run['policy']}\n   {_summary(run['episodes'])}")
    outcomes = [
        {episode["seed"]: bool(episode["success"]) for episode in run["episodes"]}
        for run in runs.values()
    ]
    pair = paired_success(*outcomes)
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
            "known: a recording does not hold their first observations (an older version made it)"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if any(episode["seed"] is None for episode in run["episodes"]):
            raise DatasetError(f"{path} has episodes without seeds: record with --seed")
        if not run["episodes"]:
            raise DatasetError(f"{path} holds no episodes")
        if run.get("schema_version") == VERSION["recording"]:  # the first had none, and no scenes
            read("recording", json.dumps(run))
    except (OSError, ValueError, LookupError, TypeError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path} is no recording: {type(error).__name__}: {error}") from error
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
