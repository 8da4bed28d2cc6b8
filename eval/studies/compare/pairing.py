"""Which episodes belong together, and whether they may be compared."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from asd_policy.envs.tasks import get_task
from asd_policy.errors import InputError
from asd_policy.eval.runs.episode import Episode
from asd_policy.eval.runs.folder import Run, open_run
from asd_policy.eval.studies.compare.options import CompareOptions
from asd_policy.eval.studies.compare.scenes import same_scenes

Json = dict[str, Any]
# What changes latency without changing what is computed.
_WORLD = {"control_rate": 20.0, "execution": "late"}  # with a delay; and their defaults
_PLACE = ("device", "gpu", "threads", "engine", "kernels", "precision", "compile")


@dataclasses.dataclass(frozen=True)
class Side:
    """One sampler's episodes in one run, by seed."""

    folder: Path
    sampler: str
    config: Json
    machine: Json
    episodes: dict[int, Episode]

    @property
    def describe(self) -> Json:
        settings = self.config["settings"]
        return {
            "folder": str(self.folder),
            "sampler": self.sampler,
            "checkpoint_sha256": settings["checkpoint_sha256"],
            "asd_policy": self.config.get("asd_policy"),
            "started": self.config.get("started"),
            "episodes": len(self.episodes),
        }


def side_of(run: Run, sampler: str) -> Side:
    """One sampler's part of a run.

    Raises:
        ValueError: the run has no such sampler, or no finished episode of it.
    """
    samplers = run.settings["samplers"]
    if sampler not in samplers:
        raise InputError(f"{run.path} has no sampler {sampler!r}; it has {', '.join(samplers)}")
    episodes = {e.seed: e for e in run.episodes if e.sampler == sampler}
    if not episodes:
        raise InputError(f"{run.path} has no finished episode of {sampler}")
    machine: Json = {}
    with contextlib.suppress(ValueError):  # what is compared does not hang on it
        machine = run.env()
    return Side(run.path, sampler, run.config, machine, episodes)


def pairs_of(options: CompareOptions) -> list[tuple[Side, Side]]:
    """(judged, judged against) for each comparison that is asked for.

    Raises:
        ValueError: it is not clear which samplers are meant, or the runs may not be compared.
    """
    runs = [open_run(folder) for folder in options.runs]
    first, last = runs[0], runs[-1]
    ours, theirs = first.settings["samplers"], last.settings["samplers"]
    check_alike(first, last, options.allow_different_checkpoints)
    if len(options.samplers) > 2:
        sides = [side_of(first, name) for name in options.samplers]
        return list(itertools.combinations(sides, 2))
    if options.samplers:
        a, b = options.samplers
        return [(side_of(first, a), side_of(last, b))]
    if len(runs) == 2:
        shared = [name for name in ours if name in theirs]
        if not shared:
            raise InputError(
                f"the runs share no sampler ({', '.join(ours)}; "
                f"{', '.join(theirs)}); name one of each: --samplers A B"
            )
        return [(side_of(first, name), side_of(last, name)) for name in shared]
    if len(ours) != 2:
        raise InputError(
            f"{first.path} has the samplers {', '.join(ours)}; name two: --samplers A B"
        )
    a, b = sorted(ours, key=lambda name: name == "ddpm")
    return [(side_of(first, a), side_of(first, b))]


def check_alike(a: Run, b: Run, allow_different_checkpoints: bool) -> None:
    """Raise ValueError unless success means the same in both, of the same policy."""
    ours, theirs = a.settings, b.settings
    for key, value in (("task", lambda of: of["task"]), ("horizon", _horizon)):
        if value(ours) != value(theirs):
            raise InputError(
                f"runs of one {key} can be compared; got {value(ours)} in {a.path} and "
                f"{value(theirs)} in {b.path}"
            )
    key = "checkpoint_sha256"
    if ours[key] != theirs[key] and not allow_different_checkpoints:
        raise InputError(
            f"the runs are of different checkpoints (SHA-256 {ours[key][:12]}… in {a.path}, "
            f"{theirs[key][:12]}… in {b.path}); add --allow-different-checkpoints to compare "
            "them nevertheless"
        )
    one, other = (run.config["resolved"]["horizons"] for run in (a, b))
    if one != other and not allow_different_checkpoints:
        raise InputError(
            f"the runs' policies look back, act and plan for {one} steps in {a.path}, {other} in "
            f"{b.path}; add --allow-different-checkpoints to compare them nevertheless"
        )


def _horizon(settings: Mapping[str, Any]) -> int:
    """In control steps; None of a run is its task's own."""
    horizon: int | None = settings["horizon"]
    return get_task(settings["task"]).horizon if horizon is None else horizon


def common_seeds(a: Side, b: Side, among: Collection[int] | None = None) -> list[int]:
    """Seeds that both have done, of these (None: of all).

    Raises:
        ValueError: there is none.
    """
    both = a.episodes.keys() & b.episodes.keys()
    seeds = sorted(both if among is None else both & set(among))
    if not seeds:
        raise InputError(
            f"no seed was done by both: {a.sampler} in {a.folder} did {_range(a)}, {b.sampler} in "
            f"{b.folder} did {_range(b)}"
        )
    return seeds


def scenes_alike(a: Side, b: Side, seeds: Sequence[int]) -> int:
    """How many of the seeds are known to have begun with one scene in both.

    Raises:
        DatasetError: some began with different ones.
    """
    first, second = ({s: side.episodes[s].scene for s in seeds} for side in (a, b))
    return same_scenes(first, second, "run both with one robosuite and MuJoCo, and one task")


def _range(side: Side) -> str:
    return f"{min(side.episodes)} to {max(side.episodes)}"


def differing_settings(a: Side, b: Side) -> list[str]:
    """What the world, or one and the same sampler, was set to otherwise."""
    late = [_delay(side) for side in (a, b)]
    pairs = [("delay", *late)]
    if late != [None, None]:
        settings = [{**_WORLD, **side.config["settings"]} for side in (a, b)]
        pairs += [(name, *(each[name] for each in settings)) for name in _WORLD]
    if a.sampler == b.sampler:
        for name, key in (("steps", "steps"), ("window", "windows"), ("eta", "etas")):
            kept = [side.config.get("resolved", {}).get(key) for side in (a, b)]
            if None not in kept:  # runs of earlier versions do not say
                pairs.append((name, *(each.get(a.sampler) for each in kept)))
        asked = [side.config.get("samplers", {}).get(a.sampler, {}) for side in (a, b)]
        pairs.append(("tolerance", *(each.get("tolerance") for each in asked)))
    return [f"{name} {one} and {two}" for name, one, two in pairs if one != two]


def _delay(side: Side) -> Any:
    """Of this sampler: several numbers are one for each."""
    settings = side.config["settings"]
    delay = settings.get("delay")
    if not isinstance(delay, list):
        return delay
    return delay[0 if len(delay) == 1 else list(settings["samplers"]).index(side.sampler)]


def differing_places(a: Side, b: Side) -> list[str]:
    """What makes a ratio of latencies one of machines or settings too."""
    found = []
    places = [(s.config.get("resolved", {}), s.machine, s.config["settings"]) for s in (a, b)]
    (ours, machine, settings), (theirs, other, others) = places
    pairs = [(key, ours.get(key), theirs.get(key)) for key in _PLACE]
    pairs += [("processor", machine.get("cpu"), other.get("cpu"))]
    pairs += [("num_envs", settings.get("num_envs"), others.get("num_envs"))]
    for name, one, two in pairs:
        if one != two:
            found.append(f"{name} {one} and {two}")
    return found
