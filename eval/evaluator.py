"""An evaluation from its options to its results: the same seeds for every sampler, in turn."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import importlib.metadata
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from asd_policy.console import plain_console, say
from asd_policy.errors import OutputError
from asd_policy.eval.delay import delayed
from asd_policy.eval.flight import FlightRecorder
from asd_policy.eval.folder import (
    SCHEMA_VERSION,
    RunFolder,
    check_folder,
    default_folder,
    read_config,
    read_run,
    reserved,
)
from asd_policy.eval.machine import describe_machine
from asd_policy.eval.options import EvalOptions, check_options, command_line, with_realtime
from asd_policy.eval.records import Episode
from asd_policy.eval.results import summarize
from asd_policy.eval.rollout import Listener, Policy, roll_out
from asd_policy.eval.samplers import sampler_settings
from asd_policy.eval.show.page import write_page
from asd_policy.eval.show.progress import RunProgress
from asd_policy.eval.show.terminal import print_report
from asd_policy.eval.slots import Slot
from asd_policy.eval.subject import with_its_task
from asd_policy.eval.video import Recorder, check_rendering
from asd_policy.progress import Stage

# What names the run's place rather than its content.
_NOT_SETTINGS = ("out", "resume", "checkpoint", "realtime", "ray", "measure")
_SEEDS_OF_A_TURN = 4  # for each environment, where there are several

Film = Callable[[Path, str, int], Recorder | None]
"""(folder, sampler, seed) → the film of an episode, None where it is not filmed."""


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a run is made of: one policy for each sampler, and the environments they share.

    `checkpoint_sha256` is part of what must not change when a run is resumed; `resolved` is what
    "auto" and the defaults came to (device, threads, precision, steps of each sampler).
    `held_components`: of an action, what is repeated while a robot holds still (a gripper's
    command). `places`: how many policies run at once, each with environments of its own.
    """

    policies: Mapping[str, Policy]
    slots: Sequence[Slot]
    render_fps: float
    checkpoint_sha256: str
    resolved: dict[str, Any]
    held_components: Sequence[int] = ()
    places: int = 1

    def roll_out(
        self, jobs: Iterator[tuple[str, int]], film: Film, folder: Path, listener: Listener
    ) -> Generator[Episode, None, None]:
        """The episodes of these (sampler, seed), each as it ends; films go to `folder`."""
        recorder = functools.partial(film, folder)
        return roll_out(self.policies, self.slots, jobs, recorder=recorder, listener=listener)

    def check_rendering(self) -> None:
        """Raise AsdPolicyError unless a frame can be rendered."""
        check_rendering(self.slots[0])

    def describe_machine(self) -> dict[str, Any]:
        """The machine that the policy runs on, and versions."""
        return describe_machine(self.resolved)

    def close(self) -> None:
        """Close the environments."""
        for slot in self.slots:
            slot.close()


def evaluate(
    options: EvalOptions,
    *,
    prepare: Callable[[EvalOptions], Setup] | None = None,
    console: Console | None = None,
    part: bool = False,
) -> dict[str, Any]:
    """Run, or continue, an evaluation; print its table and return its results.

    Args:
        options: what to do; see `EvalOptions`.
        prepare: makes policies and environments (default: `asd_policy.eval.setup.prepare`).
        console: where the table goes (default: stdout). Progress goes to stderr.
        part: of a larger run, which says by which command it is continued.

    Raises:
        ValueError: an option that is out of range, or an unknown task.
        CheckpointError: a checkpoint that is missing, damaged, or does not fit the task.
        OutputExistsError: the output folder holds another run.
        NonFiniteError: NaN or infinity from the world or the policy; finished episodes are kept.
        OutputError: the disk is full, or the like; what was finished before is kept.
        KeyboardInterrupt: passed on, when what was finished is kept and summarized.
    """
    options = with_realtime(options)
    check_options(options)
    options = with_its_task(options)
    console = console or plain_console()
    path = options.out or default_folder(options.name or str(options.task))
    # Refuse now, rather than after seconds of loading.
    there = check_folder(path, _settings(options), options.resume)
    with reserved(path):
        say(f"Output folder: {path}" + (_continued(path, options) if there else ""))
        say(
            f"{options.task}: {', '.join(options.samplers)}; {_count(options.episodes)} each, "
            "on the same seeds"
        )
        with contextlib.closing((prepare or _really_prepare)(options)) as setup:
            if options.video:
                setup.check_rendering()
            with contextlib.closing(_claim(options, path, setup)) as folder:
                try:
                    _run(options, setup, folder)
                except BaseException:
                    _say_kept(folder, options, part)
                    raise
                results = _write_results(folder)
                print_report(console, results, folder.path)
    return results


def _continued(path: Path, options: EvalOptions) -> str:
    total = options.episodes * len(options.samplers)
    return f", continued: {len(read_run(path)[1])} of {total} episodes are finished"


def _really_prepare(options: EvalOptions) -> Setup:
    """Imported here: what must be loaded takes seconds, and that is said first."""
    if options.ray is not None:
        from asd_policy.eval.cluster.driver import prepare_on_ray

        return prepare_on_ray(options)
    with Stage("loading PyTorch and the simulator"):
        from asd_policy.eval.setup import prepare
    return prepare(options)


def _claim(options: EvalOptions, path: Path, setup: Setup) -> RunFolder:
    before = read_config(path)
    config = {
        "schema_version": SCHEMA_VERSION,
        "asd_policy": importlib.metadata.version("asd-policy"),
        "command": command_line(options),
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "settings": _settings(options) | {"checkpoint_sha256": setup.checkpoint_sha256},
        "samplers": {name: sampler_settings(name, options) for name in options.samplers},
        "resolved": setup.resolved,
    }
    env = {"schema_version": SCHEMA_VERSION} | setup.describe_machine()
    folder = RunFolder.claim(path, json.loads(json.dumps(config)), env, options.resume)
    if before is not None:
        _say_moved(before["resolved"], setup.resolved)
    return folder


def _say_moved(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """A run that goes on elsewhere is allowed, for the episodes are what counts, and is not silent:
    its latencies are of both."""
    keys = ("device", "gpu", "threads", "engine", "kernels")
    moved = [f"{k} {then.get(k)} then, {now.get(k)} now" for k in keys if then.get(k) != now.get(k)]
    if moved:
        say(
            f"The run was begun on another machine setting ({'; '.join(moved)}): its latencies "
            "will be of both. env.json has them."
        )


def _settings(options: EvalOptions) -> dict[str, Any]:
    """The options that make the run what it is, as they will be read back from config.json."""
    kept = {k: v for k, v in dataclasses.asdict(options).items() if k not in _NOT_SETTINGS}
    return json.loads(json.dumps(kept))


def schedule(options: EvalOptions) -> Iterator[tuple[str, int]]:
    """(sampler, seed) in the order they start: all samplers on some seeds, then the next seeds,
    taking turns at going first, so that a machine that slows down is slow for each alike.

    A turn is one seed with one environment, and with several a few seeds for each of them: where
    one sampler's episodes end and the next one's begin, the two share the slots, and neither has
    a full batch."""
    names = options.samplers
    seeds = range(options.seed, options.seed + options.episodes)
    size = 1 if options.num_envs == 1 else _SEEDS_OF_A_TURN * options.num_envs
    for turn, start in enumerate(range(0, len(seeds), size)):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            for seed in seeds[start : start + size]:
                yield name, seed


def _run(options: EvalOptions, setup: Setup, folder: RunFolder) -> None:
    done = folder.done
    flight = FlightRecorder(folder.path, _flight_header(setup)) if options.record else None
    if flight is not None:
        flight.attach(setup.policies)
    if options.delay is not None:
        late = delayed(setup.policies, options.delay, options.control_rate, setup.held_components)
        setup = dataclasses.replace(setup, policies=late)
    progress = RunProgress(options.samplers, options.episodes, folder.episodes, setup.places)
    with progress:
        episodes = setup.roll_out(
            (job for job in schedule(options) if job not in done),
            functools.partial(_recorder, options, setup.render_fps),
            folder.path,
            Listener(started=progress.begin, ticked=progress.tick),
        )
        with contextlib.closing(episodes):
            for episode in episodes:
                if flight is not None:  # before the line: every episode that counts has its flight
                    flight.keep(episode)
                folder.add(episode)
                progress.episode(episode)


def _flight_header(setup: Setup) -> dict[str, Any]:
    return {
        "checkpoint_sha256": setup.checkpoint_sha256,
        "resolved": setup.resolved,
        "machine": describe_machine(setup.resolved),
    }


def _recorder(
    options: EvalOptions, fps: float, folder: Path, name: str, seed: int
) -> Recorder | None:
    if seed >= options.seed + options.video:
        return None
    stem = f"{options.task}_seed{seed}_{name}"
    return Recorder(folder / "videos", stem, fps, title=f"{options.task}, seed {seed}, {name}")


def _write_results(folder: RunFolder) -> dict[str, Any]:
    results = summarize(*folder.kept())
    folder.write_results(results)
    write_page(folder.path)
    return results


def _say_kept(folder: RunFolder, options: EvalOptions, part: bool) -> None:
    """After a run that was cut short: what is kept, and how to go on."""
    results = summarize(*folder.kept())
    with contextlib.suppress(OutputError):  # a full disk: that is being said already
        _write_results(folder)
    finished = sum(summary["success"]["n"] for summary in results["samplers"].values())
    if finished:
        print_report(plain_console(stderr=True), results, folder.path)
    again = command_line(dataclasses.replace(options, out=folder.path, resume=True))
    total = options.episodes * len(options.samplers)
    said = f"{finished} of {total} episodes were finished and are kept in {folder.path}"
    say(said if part else f"{said}; continue with\n  {again}")


def _count(episodes: int) -> str:
    return "1 episode" if episodes == 1 else f"{episodes} episodes"
