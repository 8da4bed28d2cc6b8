"""`asd-policy replay` samples chunks of a recorded run again, from what the recorder kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.text import Text

from asd_policy.checkpoints import find_checkpoint
from asd_policy.console import plain_console
from asd_policy.device import resolve_device
from asd_policy.envs.tasks import TASKS, agreed_task
from asd_policy.errors import InputError
from asd_policy.eval.options import ReplayOptions, at_least
from asd_policy.eval.rollout.flight import (
    FOLDER,
    Flight,
    FlightDamagedError,
    flight_path,
    read_flight,
)
from asd_policy.eval.runs.files import check_output_folder, write_json
from asd_policy.eval.runs.folder import read_run
from asd_policy.eval.runs.machine import describe_machine
from asd_policy.eval.runs.schemas import VERSION
from asd_policy.eval.subject import task_of
from asd_policy.integrations.loaders import open_policies
from asd_policy.samplers.acceptance import Acceptance
from asd_policy.samplers.table import Plan

if TYPE_CHECKING:
    from asd_policy.policy import DiffusionPolicy

_SAMPLE = 10  # chunks, where nothing says which
_SHOWN = 10  # of those that differ
_PLACE = ("device", "engine", "precision", "compile", "threads")

Json = dict[str, Any]
Place = tuple[str, int, int]  # sampler, seed, number of the chunk


def replay(options: ReplayOptions, console: Console | None = None) -> Json:
    """Sample chunks again and compare; print what was found, and write it to replay.json.

    Raises:
        ValueError: no run, one without a flight recorder, or no such chunk.
        CheckpointError: the policy cannot be loaded.
        OutputError: nothing can be written into the run's folder.
    """
    if options.sample is not None:
        at_least("sample", options.sample, 1)
    config, episodes = read_run(options.run)
    if not config["settings"].get("record"):
        raise InputError(f"{options.run} was not recorded; expected a run of `eval --record`")
    check_output_folder(options.run)
    places = _select(options, {(e.sampler, e.seed): len(e.chunks) for e in episodes})
    replayer = _Replayer(options, config)
    verdicts = [found for episode in _by_episode(places) for found in replayer.episode(*episode)]
    same = sum(verdict["same"] for verdict in verdicts)
    result = {
        "schema_version": VERSION["replay"],
        "run": str(options.run),
        "chunks": len(verdicts),
        "same": same,
        "different": len(verdicts) - same,
        "machine": replayer.machine,
        "changed_since": replayer.changed,
        "verdicts": verdicts,
    }
    write_json(options.run / "replay.json", result)
    _print(console or plain_console(), result)
    return result


def _select(options: ReplayOptions, chunks: dict[tuple[str, int], int]) -> list[Place]:
    """The chunks that are asked for, in the order of their episodes."""
    there = [
        (sampler, seed, number)
        for (sampler, seed), count in sorted(chunks.items())
        for number in range(count)
        if options.sampler in (None, sampler)
        and options.seed in (None, seed)
        and options.chunk in (None, number)
    ]
    if not there:
        asked = {k: getattr(options, k) for k in ("sampler", "seed", "chunk")}
        named = ", ".join(f"{k} {v}" for k, v in asked.items() if v is not None) or "anything"
        have = ", ".join(f"{s} {seed} ({n})" for (s, seed), n in sorted(chunks.items())[:8])
        raise InputError(
            f"{options.run} has no chunk of {named}; its episodes (chunks): {have or 'none'}"
        )
    count = options.sample
    if count is None and not options.all and options.seed is None:
        count = _SAMPLE
    if count is None or count >= len(there):
        return there
    return sorted(random.Random(0).sample(there, count))


def _by_episode(places: Sequence[Place]) -> Iterator[tuple[str, int, list[int]]]:
    for sampler, seed in dict.fromkeys(place[:2] for place in places):
        yield sampler, seed, [n for *episode, n in places if episode == [sampler, seed]]


class _Replayer:
    """The policies of a run, loaded when they are needed, and what has changed since."""

    def __init__(self, options: ReplayOptions, config: Json):
        self._run, self._samplers = options.run, config["samplers"]
        self._checkpoint = find_checkpoint(options.checkpoint or config["resolved"]["checkpoint"])
        if options.checkpoint is not None:
            _check_task(options, config["settings"]["task"])
        resolved = dict(config["resolved"])
        if options.device is not None:
            resolved["device"] = resolve_device(options.device)
            resolved["engine"] = "auto"
        self._resolved = resolved
        self._policies: dict[str, DiffusionPolicy] = {}
        self._open: Callable[[Json], Any] | None = None  # the checkpoint, once it has been read
        torch.set_num_threads(resolved["threads"])
        self.machine: Json = {}
        self.changed: dict[str, list[Any]] = {}

    def episode(self, sampler: str, seed: int, numbers: Sequence[int]) -> Iterator[Json]:
        """Verdicts about chunks of one episode."""
        place = {"sampler": sampler, "seed": seed}
        try:
            flight = read_flight(flight_path(self._run, sampler, seed))
        except FlightDamagedError as error:
            for number in numbers:
                yield {**place, "chunk": number, "same": False, "damaged": str(error)}
            return
        policy = self._policy(sampler)
        _check_fit(policy, flight)
        self._compare_machines(flight)
        for number in numbers:
            if number >= len(flight.chunk):
                raise InputError(
                    f"{FOLDER}/ has {len(flight.chunk)} chunks of {sampler}, seed {seed}; "
                    f"episodes.jsonl counts more"
                )
            yield {**place, "chunk": number, **_verdict(policy, flight, number)}

    def _policy(self, sampler: str) -> DiffusionPolicy:
        if sampler not in self._policies:
            if self._open is None:
                place = {key: self._resolved[key] for key in _PLACE}
                self._open = open_policies(self._checkpoint, place)
            self._policies[sampler] = self._open(self._samplers[sampler])
        policy = self._policies[sampler]
        here = describe_machine(self._resolved | {"threads": torch.get_num_threads()})
        self.machine = _flat(
            here | {"checkpoint_sha256": policy.card["sha256"]}
            | {"engine": policy.engine.name, "kernels": policy.engine.kernels}
            | {"device": self._resolved["device"], "precision": self._resolved["precision"]}
        )  # fmt: skip
        return policy

    def _compare_machines(self, flight: Flight) -> None:
        then, resolved = flight.header, flight.header["resolved"]
        names = ("engine", "kernels", "device", "precision")
        recorded = _flat(
            then["machine"] | {"checkpoint_sha256": then["checkpoint_sha256"]}
            | {name: resolved[name] for name in names}
        )  # fmt: skip
        for key in sorted(recorded.keys() | self.machine.keys()):
            pair = [recorded.get(key), self.machine.get(key)]
            if pair[0] != pair[1]:
                self.changed[key] = pair


def _check_task(options: ReplayOptions, recorded: str) -> None:
    """Refuse --checkpoint of another task than the run's, where that is one of the tasks here."""
    assert options.checkpoint is not None
    own = agreed_task(None, task_of(options.checkpoint), options.checkpoint)
    if own in TASKS and own != recorded:
        raise InputError(
            f"{options.run} is a run of {recorded}; {options.checkpoint} was trained for {own}"
        )


def _flat(values: Json) -> Json:
    """Without nesting: {"versions": {"torch": …}} becomes {"versions.torch": …}."""
    flat: Json = {}
    for key, value in values.items():
        inner = value if isinstance(value, dict) else {}
        flat |= {f"{key}.{name}": inner[name] for name in inner} or {key: value}
    return flat


def _check_fit(policy: DiffusionPolicy, flight: Flight) -> None:
    made = policy.config.chunk_shape, policy.schedule.num_steps
    kept = flight.action.shape[1:], flight.accepted.shape[1]
    if made != kept:
        raise InputError(
            f"the recorded chunks are of shape {kept[0]} in {kept[1]} steps; this policy makes "
            f"{made[0]} in {made[1]}"
        )


def _verdict(policy: DiffusionPolicy, flight: Flight, number: int) -> Json:
    """Sample one chunk again, in the batch that it was sampled in."""
    rows, row = flight.rows(number), flight.column(number, "row")
    which, window = flight.column(number, "slopes"), flight.column(number, "window")
    slopes = torch.from_numpy(np.array(flight.slopes[which])) if which >= 0 else None
    streams = [policy.stream(int(seed), int(drawn)) for seed, drawn in flight.stream[rows]]
    unknown = Acceptance.unknown(policy.schedule.num_steps)
    plan = Plan(window, slopes, not policy.calibration.frozen, unknown)
    actions, stats = policy.sample(flight.observation[rows], streams, plan)
    again, then = actions[row], flight.action[number]
    with np.errstate(invalid="ignore"):
        largest = float(np.abs(again.astype(float) - then).max())
    differ = int((again.view(np.uint32) != then.view(np.uint32)).sum())
    trace = [
        int(step)
        for step in np.flatnonzero(
            (stats.accepted[row].numpy() != flight.accepted[number])
            | (stats.decided[row].numpy() != flight.decided[number])
        )
    ]
    cost = (stats.window, int(stats.calls[row]), int(stats.evaluations[row]))
    recorded = tuple(flight.column(number, name) for name in ("window", "calls", "evaluations"))
    return {
        "same": not differ and not trace and cost == recorded,
        "batch": len(streams),
        "window": window,
        "largest_difference": largest if np.isfinite(largest) else None,
        "actions_differ": differ,
        "decisions_differ_at_steps": trace,
        "window_calls_evaluations": {"recorded": list(recorded), "now": list(cost)},
    }


def _print(console: Console, result: Json) -> None:
    count, same = result["chunks"], result["same"]
    said = f"{same} of {count} chunks are bitwise the same, sampled again as recorded."
    console.print(said, soft_wrap=True)
    differing = [verdict for verdict in result["verdicts"] if not verdict["same"]]
    for verdict in differing[:_SHOWN]:
        console.print(Text(_line(verdict)), soft_wrap=True)
    if len(differing) > _SHOWN:
        console.print(f"… and {len(differing) - _SHOWN} more, in replay.json")
    changed = result["changed_since"]
    if differing:
        found = "; ".join(f"{key}: {then} then, {now} now" for key, (then, now) in changed.items())
        text = (
            "Changed since the recording: "
            + (
                found
                or "nothing that is recorded, so the record "
                "itself, the card or the code is not what it was"
            )
            + ". Batches, windows and slopes "
            "were those of the recording."
        )
        console.print(Text(text), soft_wrap=True)
    console.print(Text(f"Kept: {Path(result['run']) / 'replay.json'}"), soft_wrap=True)


def _line(verdict: Json) -> str:
    name = f"{verdict['sampler']}, seed {verdict['seed']}, chunk {verdict['chunk']}"
    if "damaged" in verdict:
        return f"  {name}: {verdict['damaged']}"
    steps, counts = verdict["decisions_differ_at_steps"], verdict["window_calls_evaluations"]
    largest = verdict["largest_difference"]
    by = "a number that is not finite" if largest is None else f"at most {largest:.3g}"
    parts = [
        f"{verdict['actions_differ']} numbers differ, by {by}",
        f"other decisions at steps {steps[:6]}" if steps else "the same decisions",
    ]
    if counts["now"] != counts["recorded"]:
        parts.append(f"window, calls, evaluations {counts['recorded']} then, {counts['now']} now")
    return f"  {name}: {'; '.join(parts)}"
