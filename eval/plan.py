"""An evaluation's options, resolved once: nothing of a plan is looked up or checked again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from asd_policy.checkpoints import check_steps
from asd_policy.eval.options import (
    DelayOption,
    EvalOptions,
    check_options,
    command_line,
    with_realtime,
)
from asd_policy.eval.runs.files import default_folder
from asd_policy.eval.samplers import sampler_settings
from asd_policy.eval.subject import checkpoint_of, with_its_task

Json = dict[str, Any]
# What names the run's place rather than its content.
_NOT_SETTINGS = ("out", "resume", "checkpoint", "realtime", "ray", "remote", "measure")
_SEEDS_OF_A_TURN = 4  # for each environment, where there are several


@dataclasses.dataclass(frozen=True)
class Parts:
    """The policies and environments that a run is made with.

    `samplers`: name → keyword arguments of `DiffusionPolicy.load`. `episodes`: of each sampler.
    `video`: episodes of each that are filmed. `ray`: a cluster's address, none where it is to be
    started here; None: in this process. `remote`: addresses of servers, one a sampler. The other
    fields: as in `EvalOptions`.
    """

    task: str
    checkpoint: Path | None
    samplers: Mapping[str, Json]
    episodes: int
    num_envs: int
    horizon: int | None
    video: int
    device: str
    engine: str
    precision: str
    compile: bool
    threads: int | None
    measure: bool
    ray: tuple[str, ...] | None
    remote: tuple[str, ...] = ()

    @property
    def robots(self) -> int:
        """Environments: no more than there are episodes."""
        return min(self.num_envs, self.episodes * len(self.samplers))

    @property
    def place(self) -> Json:
        """Where and how policies compute, as arguments of `DiffusionPolicy.load`."""
        names = ("device", "engine", "precision", "compile", "threads")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is run, where it is kept, and under which settings.

    `settings`: the options that make the run what it is, as config.json keeps them (but for the
    checkpoint's hash). `command`: asks for this run; `again`: continues it.
    """

    parts: Parts
    seeds: range
    record: bool
    delay: DelayOption | None
    control_rate: float
    execution: str
    out: Path
    resume: bool
    settings: Json
    command: str
    again: str

    @property
    def total(self) -> int:
        """Episodes of all samplers."""
        return len(self.seeds) * len(self.parts.samplers)

    def schedule(self) -> Iterator[tuple[str, int]]:
        """(sampler, seed) in the order they start: all samplers on some seeds, then the next seeds,
        taking turns at going first, so that a machine that slows down is slow for each alike.

        A turn is one seed with one environment, and with several a few seeds for each of them:
        where one sampler's episodes end and the next one's begin, the two share the slots, and
        neither has a full batch."""
        names = tuple(self.parts.samplers)
        num_envs = self.parts.num_envs
        size = 1 if num_envs == 1 else _SEEDS_OF_A_TURN * num_envs
        for turn, start in enumerate(range(0, len(self.seeds), size)):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                for seed in self.seeds[start : start + size]:
                    yield name, seed


def resolve(options: EvalOptions) -> Plan:
    """The plan of an evaluation.

    Raises:
        ValueError: an option that is out of range, also for the policy, or an unknown task.
        CheckpointError: a checkpoint that cannot be read, or is of no task here.
    """
    options = with_realtime(options)
    check_options(options)
    options = with_its_task(options)
    out = options.out or default_folder(options.name or str(options.task))
    named = {field.name: getattr(options, field.name) for field in dataclasses.fields(Parts)}
    samplers = {name: sampler_settings(name, options) for name in options.samplers}
    if not options.remote:
        for name, settings in samplers.items():
            check_steps(name, settings.get("steps"), checkpoint_of(options))
    kept = {k: v for k, v in dataclasses.asdict(options).items() if k not in _NOT_SETTINGS}
    if options.delay is None:
        del kept["execution"]
    return Plan(
        parts=Parts(**named | {"samplers": samplers}),
        seeds=range(options.seed, options.seed + options.episodes),
        record=options.record,
        delay=options.delay,
        control_rate=options.control_rate,
        execution=options.execution,
        out=out,
        resume=options.resume,
        settings=json.loads(json.dumps(kept)),
        command=command_line(options),
        again=command_line(dataclasses.replace(options, out=out, resume=True)),
    )
