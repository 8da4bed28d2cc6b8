"""tasks.json: a pure function of the evaluation runs in some folders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from asd_policy.envs.tasks import TASKS
from asd_policy.errors import InputError
from asd_policy.eval.runs.episode import Episode
from asd_policy.eval.runs.evaluation import Results, Summary
from asd_policy.eval.runs.folder import Run, open_run
from asd_policy.eval.runs.forms import Pair
from asd_policy.eval.runs.studies import LatencyMachine, OneRobot, OnTask, Task, Tasks
from asd_policy.eval.stats.basics import paired_success
from asd_policy.eval.stats.summary import summarize
from asd_policy.eval.studies.tasks import REFERENCE

Json = dict[str, Any]
# What shards of one task may differ in, besides where and when they ran.
_OF_A_SHARD = ("seed", "episodes", "num_envs", "device", "threads", "video", "name")


def compute_table(folders: Iterable[Path]) -> Tasks:
    """The content of tasks.json.

    Success, calls and acceptance are of all success runs of a task together; latency is of its
    latency run (one robot).

    Raises:
        ValueError: no runs there, or runs of one task that do not belong together.
    """
    folders = list(folders)
    paths = {top: sorted(top.glob("*/*/config.json")) for top in folders}
    for top, found in paths.items():
        if not found:
            raise InputError(f"expected runs of `asd-policy tasks` in {top}; found none")
    runs = [open_run(path.parent) for found in paths.values() for path in found]
    of_task = {name: [run for run in runs if run.settings["task"] == name] for name in TASKS}
    return {
        "schema_version": 1,
        "versions": sorted({run.config["asd_policy"] for run in runs}),
        "tasks": {task: _task(there) for task, there in of_task.items() if there},
    }


def _machine(run: Run) -> LatencyMachine:
    env = run.env()
    return {
        "cpu": env["cpu"],
        "cpu_count": env["cpu_count"],
        "gpu": env["gpu"],
        "threads": env["threads"],
        "precision": run.config["resolved"]["precision"],
        "kernels": run.config["resolved"]["kernels"],
    }


def _task(runs: Sequence[Run]) -> Task:
    _check_alike(runs)
    latency = [run for run in runs if run.path.name == "latency"]
    success = [run for run in runs if run.path.name != "latency"]
    if len(latency) > 1:
        raise InputError(
            "expected one latency run of a task, of one machine; got "
            + " and ".join(str(run.path) for run in latency)
        )
    summary, episodes = _together(success or latency)
    one_robot = _together(latency)[0] if latency else None
    return {
        "checkpoint_sha256": runs[0].settings["checkpoint_sha256"],
        "complete": (
            _all_shards(success)
            and summary["complete"]
            and one_robot is not None
            and one_robot["complete"]
        ),
        "seeds": summary["seeds"],
        "steps": runs[0].config["resolved"]["steps"][REFERENCE],
        "num_envs": sorted({run.settings["num_envs"] for run in success}),
        "restarts": summary["restarts"],
        "machine": _machine(latency[0]) if latency else None,
        "processor_wait_share": one_robot["processor_wait_share"] if one_robot else None,
        "samplers": {
            name: _sampler(name, summary["samplers"][name], episodes, one_robot)
            for name in summary["samplers"]
        },
    }


def _all_shards(runs: Sequence[Run]) -> bool:
    """Whether their folders, success-<i>of<n>, are those of every shard."""
    names = {run.path.name for run in runs}
    return names == {f"success-{i}of{len(runs)}" for i in range(len(runs))} != set()


def _check_alike(runs: Sequence[Run]) -> None:
    """Raise ValueError unless the runs differ in nothing but their shard and their machine."""
    first = runs[0]
    for run in runs[1:]:
        a, b = first.settings, run.settings
        wrong = [k for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)]
        wrong = [k for k in wrong if k not in _OF_A_SHARD]
        if wrong:
            found = "; ".join(f"{k}: {a.get(k)} and {b.get(k)}" for k in wrong)
            raise InputError(f"{first.path} and {run.path} are not of one table: {found}")


def _together(runs: Sequence[Run]) -> tuple[Results, list[Episode]]:
    """The results of several shards as if they were one run. A shard that is missing between
    others leaves it incomplete."""
    where: dict[tuple[str, int], Path] = {}
    for run in runs:
        for episode in run.episodes:
            key = episode.sampler, episode.seed
            if key in where:
                raise InputError(f"{where[key]} and {run.path} both hold {key[0]}, seed {key[1]}")
            where[key] = run.path
    settings = [run.settings for run in runs]
    first = min(s["seed"] for s in settings)
    last = max(s["seed"] + s["episodes"] for s in settings)
    config = runs[0].config
    merged = config["settings"] | {"seed": first, "episodes": last - first}
    episodes = [episode for run in runs for episode in run.episodes]
    return summarize(config | {"settings": merged}, episodes), episodes


def _sampler(
    name: str, summary: Summary, episodes: Sequence[Episode], one_robot: Results | None
) -> OnTask:
    outcomes = {
        sampler: {e.seed: e.success for e in episodes if e.sampler == sampler}
        for sampler in (name, REFERENCE)
    }
    same = cast("Pair", paired_success(outcomes[name], outcomes[REFERENCE]))
    window = summary["window"]
    return {
        "success": summary["success"],
        "against_ddpm": None if name == REFERENCE else same,
        "failed_seeds": sorted(s for s, success in outcomes[name].items() if not success),
        "network_calls_per_chunk": summary["network_calls_per_chunk"],
        "network_evaluations_per_chunk": summary["network_evaluations_per_chunk"],
        "acceptance_rate": summary["acceptance_rate"],
        "acceptance_by_step": summary["acceptance_by_step"],
        "window": None if window is None else window["requested"],
        "chunks": summary["chunks"],
        "stages": summary.get("stages", {}),
        "smoothness": summary["smoothness"],
        "one_robot": _one_robot(one_robot["samplers"][name]) if one_robot else None,
    }


def _one_robot(summary: Summary) -> OneRobot:
    return {
        "episodes": summary["success"]["n"],
        "chunks": summary["chunks"],
        "chunk_latency_ms": summary["chunk_latency_ms"],
        "speedup_wall_clock": summary["speedup"]["wall_clock"],
    }
