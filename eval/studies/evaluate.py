"""An evaluation from its options to its results: the same seeds for every sampler, in turn."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from asd_policy.console import plain_console, say
from asd_policy.errors import OutputError, counted
from asd_policy.eval.options import EvalOptions
from asd_policy.eval.plan import Parts, Plan, resolve
from asd_policy.eval.rollout.delay import delayed
from asd_policy.eval.rollout.flight import FlightRecorder
from asd_policy.eval.rollout.loop import Listener, Setup
from asd_policy.eval.rollout.video import Recorder
from asd_policy.eval.runs.evaluation import Results
from asd_policy.eval.runs.files import now, reserved
from asd_policy.eval.runs.folder import STORE, RunFolder, read_run
from asd_policy.eval.runs.machine import describe_machine
from asd_policy.eval.runs.schemas import VERSION
from asd_policy.eval.runs.store import check_same
from asd_policy.eval.show.page import keep_page
from asd_policy.eval.show.progress import RunProgress
from asd_policy.eval.show.terminal import print_report
from asd_policy.eval.stats.summary import summarize
from asd_policy.eval.subject import other_sampler
from asd_policy.progress import Stage

Json = dict[str, Any]


def evaluate(
    options: EvalOptions,
    *,
    prepare: Callable[[Parts], Setup] | None = None,
    console: Console | None = None,
    part: bool = False,
) -> Results:
    """Run, or continue, an evaluation; print its table and return its results.

    Args:
        options: what to do; see `EvalOptions`.
        prepare: makes policies and environments (default: `asd_policy.eval.rollout.setup.prepare`).
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
    plan = resolve(options)
    console = console or plain_console()
    there = STORE.check(plan.out, plan.settings, plan.resume)  # now, not after seconds of loading
    with reserved(plan.out):
        say(f"Output folder: {plan.out}" + (_continued(plan) if there else ""))
        say(
            f"{plan.parts.task}: {', '.join(plan.parts.samplers)}; "
            f"{counted(len(plan.seeds), 'episode')} each, on the same seeds"
        )
        if (other := other_sampler(plan.parts)) is not None:
            say(other)
        with contextlib.closing((prepare or _really_prepare)(plan.parts)) as setup:
            if plan.parts.video:
                setup.check_rendering()
            with contextlib.closing(_claim(plan, setup, there)) as folder:
                try:
                    _run(plan, setup, folder)
                    results = _keep(folder)
                except BaseException:
                    _say_kept(folder, plan, part)
                    raise
                print_report(console, results, folder.path)
    return results


def _continued(plan: Plan) -> str:
    finished = len(read_run(plan.out)[1])
    return f", continued: {finished} of {plan.total} episodes are finished"


def _really_prepare(parts: Parts) -> Setup:
    """Imported here: what must be loaded takes seconds, and that is said first."""
    if parts.ray is not None:
        from asd_policy.eval.rollout.cluster.driver import prepare_on_ray

        return prepare_on_ray(parts)
    with Stage("loading PyTorch and the simulator"):
        from asd_policy.eval.rollout.setup import prepare
    return prepare(parts)


def _claim(plan: Plan, setup: Setup, there: Json | None) -> RunFolder:
    config = {
        "schema_version": VERSION["config"],
        "asd_policy": importlib.metadata.version("asd-policy"),
        "command": plan.command,
        "started": now(),
        "settings": plan.settings | {"checkpoint_sha256": setup.checkpoint_sha256},
        "samplers": plan.parts.samplers,
        "resolved": setup.resolved,
    }
    env = {"schema_version": VERSION["env"]} | setup.describe_machine()
    if there is not None:  # which the weights' digest does not say
        kept, ours = (
            {"horizons": each["horizons"]} for each in (there["resolved"], setup.resolved)
        )
        check_same(plan.out, kept, ours)
    folder = RunFolder.claim(plan.out, json.loads(json.dumps(config)), env, plan.resume)
    if there is not None:
        _say_moved(there["resolved"], setup.resolved)
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


def _run(plan: Plan, setup: Setup, folder: RunFolder) -> None:
    done = folder.done
    flight = FlightRecorder(folder.path, _flight_header(setup)) if plan.record else None
    if flight is not None:
        flight.attach(setup.policies)
    if plan.delay is not None:
        how = plan.delay, plan.control_rate, setup.held_components, plan.execution
        late: dict[str, Any] = delayed(setup.policies, *how)
        setup = dataclasses.replace(setup, policies=late)
    samplers = tuple(plan.parts.samplers)
    progress = RunProgress(samplers, len(plan.seeds), folder.episodes, setup.places)
    filmed = plan.seeds[: plan.parts.video]
    with progress:
        episodes = setup.roll_out(
            (job for job in plan.schedule() if job not in done),
            functools.partial(_recorder, plan.parts.task, filmed, setup.render_fps),
            folder.path,
            Listener(started=progress.begin, ticked=progress.tick),
        )
        with contextlib.closing(episodes):
            for episode in episodes:
                if flight is not None:  # before the line: every episode that counts has its flight
                    flight.keep(episode)
                folder.add(episode)
                progress.episode(episode)


def _flight_header(setup: Setup) -> Json:
    return {
        "checkpoint_sha256": setup.checkpoint_sha256,
        "resolved": setup.resolved,
        "machine": describe_machine(setup.resolved),
    }


def _recorder(
    task: str, filmed: range, fps: float, folder: Path, name: str, seed: int
) -> Recorder | None:
    if seed not in filmed:
        return None
    stem = f"{task}_seed{seed}_{name}"
    return Recorder(folder / "videos", stem, fps, title=f"{task}, seed {seed}, {name}")


def _keep(folder: RunFolder, cut_short: bool = False) -> Results:
    """The summary, computed once: for results.json, for the page, and for the table."""
    run = folder.kept()
    results = summarize(run.config, run.episodes)
    # A full disk may be what cut it short, and is being said already.
    with contextlib.suppress(OutputError) if cut_short else contextlib.nullcontext():
        folder.write_results(results)
        keep_page(run, results)
    return results


def _say_kept(folder: RunFolder, plan: Plan, part: bool) -> None:
    """After a run that was cut short: what is kept, and how to go on."""
    results = _keep(folder, cut_short=True)
    finished = sum(summary["success"]["n"] for summary in results["samplers"].values())
    if finished:
        print_report(plain_console(stderr=True), results, folder.path)
    said = f"{finished} of {plan.total} episodes were finished and are kept in {folder.path}"
    say(said if part else f"{said}; continue with\n  {plan.again}")
