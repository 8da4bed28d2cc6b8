"""The matrix: one cell for each combination, in groups that are measured interleaved."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from asd_policy.errors import InputError
from asd_policy.eval.studies.bench.options import ASD_FORMS, EAGER_LOOP, BenchOptions
from asd_policy.samplers.config import SamplerConfig
from asd_policy.samplers.names import ddim_steps_of


@dataclass(frozen=True)
class Cell:
    """One combination.

    Attributes:
        network: "shipped", "chi", "lerobot" or a checkpoint folder. batch: chains sampled at once.
        steps: K of the DDPM that is sampled, or that "ddim-N" shortens.
        precision, engine, kernels, window: "-" where they do not apply.
    """

    network: str
    batch: int
    steps: int
    precision: str
    engine: str
    kernels: str
    window: str
    sampler: str
    compile: bool = False

    @property
    def key(self) -> str:
        """Names the cell in bench.json."""
        return "/".join(str(value) for value in asdict(self).values())

    @property
    def ddim_steps(self) -> int | None:
        return ddim_steps_of(self.sampler)


Group = tuple[Cell, ...]


def cell(
    network: str, batch: int, steps: int, precision: str, engine: str, kernels: str, window: str,
    sampler: str, compile: bool = False,
) -> Cell:  # fmt: skip
    """A cell, with "-" for what does not apply to its sampler."""
    if sampler == EAGER_LOOP:
        return Cell(network, batch, steps, "-", "-", "-", "-", sampler)
    kernels = "-" if sampler == "paradigms" else kernels
    window = window if sampler in (*ASD_FORMS, "paradigms") else "-"
    return Cell(network, batch, steps, precision, engine, kernels, window, sampler, compile)


def plan(options: BenchOptions, trained_steps: Mapping[str, int]) -> list[Group]:
    """Groups of one network, batch, K and precision, whose members are compared.

    Args:
        trained_steps: by network.
    """
    groups: list[Group] = []
    seen: set[Cell] = set()
    for network in options.networks:
        every_steps = options.steps or (trained_steps[network],)
        for steps, batch, precision in itertools.product(
            every_steps, options.batches, options.precisions
        ):
            inner = itertools.product(
                options.engines, options.kernels, options.windows, options.samplers
            )
            cells = (
                cell(network, batch, steps, precision, *rest, options.compile) for rest in inner
            )
            groups.append(tuple(c for c in dict.fromkeys(cells) if _makes_sense(c, seen)))
    if not any(groups):
        raise InputError(
            f"nothing to measure: {', '.join(options.samplers)} takes more steps than there are"
        )
    return [group for group in groups if group]


def _makes_sense(one: Cell, seen: set[Cell]) -> bool:
    """Not planned already, and not more DDIM steps than there are."""
    if one in seen or (one.ddim_steps or 1) > one.steps:
        return False
    seen.add(one)
    return True


def sampler_config(one: Cell) -> SamplerConfig:
    """The sampler that the cell asks for."""
    window = one.window if one.window in ("auto", "-") else int(one.window)
    return SamplerConfig(one.sampler, window="auto" if window == "-" else window)
