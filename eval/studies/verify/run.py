"""`asd-policy verify` from options to exit status."""

from __future__ import annotations

import dataclasses
import itertools
import json
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import asd_policy
from asd_policy.console import plain_console
from asd_policy.console import say as _say
from asd_policy.device import resolve_device
from asd_policy.envs.requirements import check_simulator
from asd_policy.errors import InputError
from asd_policy.eval.options import command_line
from asd_policy.eval.resume import continued_with
from asd_policy.eval.runs.files import (
    alone_in,
    check_output_folder,
    default_folder,
    now,
    write_json,
)
from asd_policy.eval.runs.machine import describe_machine, drawing_code
from asd_policy.eval.runs.schemas import VERSION
from asd_policy.eval.show.tables import print_lines
from asd_policy.eval.studies.verify.draws import Drawn, Role, Sampling, batch_file, collect
from asd_policy.eval.studies.verify.equality import Test, compare
from asd_policy.eval.studies.verify.figures import save_figure
from asd_policy.eval.studies.verify.moments import find_moments, from_episodes
from asd_policy.eval.studies.verify.options import (
    VerifyOptions,
    check_verify_options,
)
from asd_policy.eval.studies.verify.oracle import oracle_subject
from asd_policy.eval.studies.verify.roles import REFERENCE, SAMPLE, roles_of, sampler_config
from asd_policy.eval.studies.verify.store import STORE, load_arrays, save_arrays
from asd_policy.eval.studies.verify.subjects import (
    Subject,
    checkpoint_subject,
    gripper_column,
    moments_file,
    open_checkpoint,
)
from asd_policy.eval.studies.verify.tables import print_verification
from asd_policy.eval.studies.verify.verdict import (
    controls_json,
    exact_tests,
    power_json,
    sampler_json,
    tests_json,
    verdict_json,
)
from asd_policy.eval.studies.verify.workers import drawn_by_workers
from asd_policy.progress import Stage
from asd_policy.samplers.config import SamplerConfig
from asd_policy.schedule import Schedule

Json = dict[str, Any]
_ROOT = Path("outputs/verify")
_NOT_SETTINGS = ("out", "resume", "checkpoint", "threads", "workers")


def run_verify(options: VerifyOptions, console: Console | None = None) -> int:
    """Sample, test, and say what came of it. Returns the exit status.

    Args:
        options: what to do. console: where the tables go (default: stdout).

    Raises:
        ValueError, CheckpointError, DatasetError, OutputExistsError, OutputError: what the user can
            fix.
        KeyboardInterrupt: passed on; batches that were sampled are kept.
    """
    check_verify_options(options)
    check_output_folder(options.out or _ROOT)
    options = dataclasses.replace(options, device=resolve_device(options.device))
    if options.workers > 1 and options.device != "cpu":
        raise InputError(f"--workers is for a CPU; leave it out on {options.device}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with alone_in(options.out):
        return _verify(options, console or plain_console())


def _verify(options: VerifyOptions, console: Console) -> int:
    options, subject = _open(options)
    roles = roles_of(options, subject)
    assert options.out is not None
    again = command_line(dataclasses.replace(options, resume=True), "verify")
    draws = options.out / "draws"
    with continued_with(again, f" in {options.out}", lambda: any(draws.rglob("*.npz"))):
        drawn = _draw(options, subject, roles)
        with Stage("comparing the chunks (minutes, where there are tens of thousands)"):
            result = _judge(options, subject, roles, drawn)
        write_json(options.out / "verify.json", result)
        print_verification(console, result)
        save_figure(result, drawn[SAMPLE].chunks, drawn[REFERENCE].chunks, options.out)
    kept = f"Kept: {options.out}/ (verify.json, verify.png, verify.svg, draws/)"
    print_lines(console, [kept])
    return int(result["verdict"]["status"])


def _open(options: VerifyOptions) -> tuple[VerifyOptions, Subject]:
    """The subject, and the options with the folder, which is claimed."""
    if options.oracle:
        subject = oracle_subject(options)
        _check_samplers(options, subject.schedule)
        return _claim(options, "oracle", None), subject
    made, path, task = open_checkpoint(options)
    options = dataclasses.replace(options, task=task)
    if from_episodes(options, made, task):
        check_simulator()  # before a folder is claimed
    gripper_column(options.gripper, made.config.action_dim)
    _check_samplers(options, made.schedule)
    own = isinstance(options.source, Path) and not options.resume
    given = find_moments(options, made, task, _say) if own else None  # refused before a folder is
    options = _claim(options, task or path.stem, made.card["sha256"])
    file = moments_file(options)
    kept = load_arrays(file)
    if kept is None:
        windows, origin = given or find_moments(options, made, task, _say)
        save_arrays(file, windows=windows, origin=origin)  # type: ignore[arg-type]
    else:
        windows, origin = kept["windows"], str(kept["origin"])
    return options, checkpoint_subject(options, made, path, windows, origin)


def _check_samplers(options: VerifyOptions, schedule: Schedule) -> None:
    """Refuse now, not after minutes of sampling: ValueError from the sampler's own check."""
    for name in (options.sampler, options.reference):
        sampler_config(options, name).schedule(schedule)


def _claim(options: VerifyOptions, name: str, sha256: str | None) -> VerifyOptions:
    out = options.out or default_folder(name, _ROOT)
    options = dataclasses.replace(options, out=out)
    settings = _settings(options) | {"checkpoint_sha256": sha256}
    if options.resume:
        STORE.begun(out)
    STORE.check(out, settings, options.resume)
    config = {
        "schema_version": VERSION["verify_config"],
        "command": command_line(options, "verify"),
        "started": now(),
        "settings": settings,
    }
    write_json(out / "config.json", config)
    return options


def _settings(options: VerifyOptions) -> Json:
    """The options that say what is sampled and tested, and the code that samples it."""
    kept = {k: v for k, v in dataclasses.asdict(options).items() if k not in _NOT_SETTINGS}
    code = [asd_policy.__version__, drawing_code()]
    return json.loads(json.dumps(kept | {"code": code}, default=str))


def _draw(options: VerifyOptions, subject: Subject, roles: dict[str, Role]) -> dict[str, Drawn]:
    assert options.out is not None
    folders = {name: options.out / "draws" / name for name in roles}
    if options.workers > 1:  # what is left to do then is to read
        _draw_in_workers(options, folders)
    total = options.batches * options.batch_chunks
    titles = {SAMPLE: options.sampler, REFERENCE: options.reference}
    chunks, drawn = 0, {}
    with Stage(f"{options.sampler}, chunks", total * len(roles)) as stage:

        def tick(count: int) -> None:
            nonlocal chunks
            chunks += count
            stage.update(chunks)

        for name, role in roles.items():
            stage.update(chunks, text=f"{titles.get(name, name)}, chunks")
            make = partial(Sampling, subject, role, options.each, options.engine, options.seed)
            drawn[name] = collect(make, folders[name], options.batches, tick)
    return drawn


def _draw_in_workers(options: VerifyOptions, folders: dict[str, Path]) -> None:
    batches = list(itertools.product(folders, range(options.batches)))
    missing = [
        (name, number)
        for name, number in batches
        if load_arrays(batch_file(folders[name], number)) is None
    ]
    done = len(batches) - len(missing)
    text = f"chunks of all samplers, by {options.workers} workers"
    size = options.batch_chunks
    drawn = drawn_by_workers(options, missing)
    with Stage(text, len(batches) * size, done * size) as stage, closing(drawn):
        for count, _ in enumerate(drawn, done + 1):
            stage.update(count * size)


def _judge(
    options: VerifyOptions, subject: Subject, roles: dict[str, Role], drawn: dict[str, Drawn]
) -> Json:
    """The content of verify.json."""
    sample, reference = drawn[SAMPLE], drawn[REFERENCE]
    chain = roles[REFERENCE].config.schedule(subject.schedule)
    known: list[Test] = []
    if subject.exact is not None:
        exact = subject.exact(chain)
        names = ((options.sampler, sample), (f"sequential {options.reference}", reference))
        for name, what in names:
            known += exact_tests(what, exact, name, options.seed)
    both, how = (sample.chunks, reference.chunks), (options.alpha, options.seed)
    tests = compare(*both, subject.gripper, *how, others=len(known)) + known
    table = tests_json(tests, options.alpha)
    power = power_json(options, subject, reference, len(table))
    others = {k: v for k, v in drawn.items() if k not in (SAMPLE, REFERENCE)}
    controls = controls_json(options, subject, reference, others, power["hardest"])
    resolved = _resolved(options, subject, chain.num_steps)
    return {
        "schema_version": VERSION["verify"],
        "command": command_line(options, "verify"),
        "settings": _settings(options) | {"checkpoint_sha256": subject.describe["sha256"]},
        "subject": subject.describe,
        "resolved": resolved,
        "machine": describe_machine(resolved),
        "samplers": {
            "sample": sampler_json(options.sampler, sample),
            "reference": sampler_json(options.reference, reference),
        },
        "tests": table,
        "power": power,
        "controls": controls,
        "verdict": verdict_json(options, table, power, controls, sample.calls.size),
    }  # fmt: skip


def _resolved(options: VerifyOptions, subject: Subject, steps: int) -> Json:
    chain = subject.schedule
    role = Role(REFERENCE, SamplerConfig("ddpm"))
    engine = Sampling(subject, role, 1, options.engine, 0).engine
    cuda = options.device != "cpu"
    return {
        "device": options.device,
        "gpu": torch.cuda.get_device_name(options.device) if cuda else None,
        "threads": torch.get_num_threads(),
        "engine": engine.name,
        "kernels": engine.kernels,
        "precision": options.precision,
        "steps": steps,
        "trained_steps": chain.config.num_steps,
        "gripper": subject.gripper,
    }
