"""The samplers that are compared, by the names of the command line, and one more.

`ddim-N` is diffusers' DDIMScheduler as it is set up where nothing else is asked for: its steps are
spaced "leading", so that with 10 or 16 of 100 the first one is at timestep 90. `ddim-N-trailing`
begins at timestep 99, where the network was taught to begin.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from asd_policy.policy import DiffusionPolicy, SamplerConfig, load_checkpoint
from asd_policy.schedule import Schedule

REFERENCE = "ddpm"
PLAYED = ("ddpm", "asd", "ddim-10", "ddim-16")
DRAWN = (*PLAYED, "ddim-clipped", "ddim-10-trailing", "ddim-50")
_TRAILING = "-trailing"


def spaced(sampler: str, schedule: Schedule) -> tuple[str, Schedule]:
    """The sampler's name for `asd_policy.sample`, and the schedule with its spacing of steps."""
    name = sampler.removesuffix(_TRAILING)
    if name == sampler:
        return name, schedule
    config = replace(schedule.config, timestep_spacing="trailing")
    return name, Schedule.from_config(config)


def load(folder: Path, sampler: str) -> DiffusionPolicy:
    """The policy in a folder, with this sampler, on one thread."""
    there = load_checkpoint(folder)
    name, schedule = spaced(sampler, there.schedule)
    checkpoint = replace(there, schedule=schedule)
    return DiffusionPolicy(checkpoint, SamplerConfig.named(name), threads=1)
