"""Calls and evaluations without and with rejoining, of the policies that ship, on the same noise.

    python -m asd_policy.eval.studies.bench.rejoining --out rejoining.json

No clock: the same figures on every machine, up to rounding. Run again, it goes on where it stopped;
with more --chains, it adds to what is there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asd_policy.checkpoints import shipped
from asd_policy.errors import InputError
from asd_policy.eval.runs.files import write_json
from asd_policy.eval.runs.schemas import VERSION, read_json
from asd_policy.eval.runs.store import check_same
from asd_policy.eval.script import run_script
from asd_policy.eval.show.tables import as_text
from asd_policy.files import claimed
from asd_policy.networks.prepare import prepare
from asd_policy.policy import load_checkpoint
from asd_policy.progress import Stage
from asd_policy.sampler import Sampler
from asd_policy.samplers.config import SamplerConfig
from asd_policy.threads import limited_to

Json = dict[str, Any]
TASKS = ("lift", "can", "square", "tool_hang", "transport")
WINDOWS = (12, 16, 24, 32, 64)
BLOCK = 50  # chains drawn at once
SIDES = ("without", "rejoining", "difference")


class Pair:
    """A task's policy sampled without and with rejoining, at one window, by stored calibration.

    Args:
        observations: folder of TASK_observations.json: normalized, they condition the chunks.
    """

    def __init__(self, task: str, window: int, observations: Path) -> None:
        checkpoint = load_checkpoint(shipped(task))
        file = observations / f"{task}_observations.json"
        try:
            windows = torch.tensor(
                json.loads(file.read_text(encoding="utf-8"))["windows"], device="cpu"
            )
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{file} holds no observations: {error}") from error
        self._conditions = checkpoint.observation_normalizer.normalize(windows).flatten(1)
        network = prepare(checkpoint.network, checkpoint.schedule.timesteps)
        place = network, checkpoint.schedule, checkpoint.config.chunk_shape
        self._samplers = [
            Sampler(
                *place,
                SamplerConfig(window=window, rejoin=rejoin),
                stored=checkpoint.card["calibration"],
            )
            for rejoin in (False, True)
        ]

    def draw(self, seed: int) -> list[tuple[Tensor, Tensor]]:
        """(BLOCK,) calls and evaluations of each sampler, from the same noise and conditions."""
        generator = torch.Generator("cpu").manual_seed(seed)
        which = torch.randint(len(self._conditions), (BLOCK,), generator=generator, device="cpu")
        seeds = torch.randint(2**31, (BLOCK,), generator=generator, device="cpu").tolist()
        found = []
        for sampler in self._samplers:
            noise = sampler.noise([torch.Generator("cpu").manual_seed(each) for each in seeds])
            _, stats = sampler.draw(noise, self._conditions[which])
            found.append((stats.calls, stats.evaluations))
        return found


def add_block(cell: Json, drawn: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Count a block of chains in a cell."""
    chains = cell["chains"] = cell["chains"] + len(drawn[0][0])
    for name, (without, rejoining) in zip(
        ("calls", "evaluations"), zip(*drawn, strict=True), strict=True
    ):
        sides = without, rejoining, rejoining - without
        for side, values in zip(SIDES, sides, strict=True):
            sums = cell[name][side]
            sums["total"] += int(values.sum())
            sums["squares"] += int(values.square().sum())
            sums["mean"] = sums["total"] / chains
            variance = (sums["squares"] - sums["total"] ** 2 / chains) / (chains - 1)
            sums["standard_error"] = (max(variance, 0.0) / chains) ** 0.5


def new_cell(task: str, window: int) -> Json:
    """Of no chain yet."""
    nothing = {"total": 0, "squares": 0, "mean": 0.0, "standard_error": 0.0}
    cell: Json = {"task": task, "window": window, "chains": 0}
    return cell | {n: {s: dict(nothing) for s in SIDES} for n in ("calls", "evaluations")}


def table(cells: Sequence[Json]) -> str:
    """One line a cell; of the differences too, with their standard errors."""
    rows = []
    for cell in cells:
        row = [cell["task"], str(cell["window"])]
        for name, digits in (("calls", 2), ("evaluations", 1)):
            for side in SIDES:
                sign = "+" if side == "difference" else ""
                sums = cell[name][side]
                mean, error = f"{sums['mean']:{sign}.{digits}f}", sums["standard_error"]
                row.append(f"{mean}±{error:.{digits}f}")
        rows.append(row)
    heads = ("task", "θ", "calls", "rejoining", "more", "evaluations", "rejoining", "more")
    chains = sorted({cell["chains"] for cell in cells})
    return (
        f"{as_text(heads, rows)}\n{' to '.join(map(str, chains[:: len(chains) - 1 or 1]))} chains"
    )


def study(
    out: Path = Path("rejoining.json"),
    chains: int = 200,
    tasks: tuple[str, ...] = TASKS,
    windows: tuple[int, ...] = WINDOWS,
    seed: int = 5000,
    observations: Path = Path("tests/data"),
) -> None:
    """Count calls and evaluations without and with rejoining, and print one table.

    Args:
        out: JSON file, written after every block of 50 chains.
        chains: Chains of each task and window.
        tasks: Policies that ship.
        windows: Evaluations of a round at most.
        seed: Seed of the first block.
        observations: Folder of TASK_observations.json, which condition the chunks.
    """
    if not tasks or min(chains, *windows, 1 if windows else 0) < 1:
        raise InputError("expected one task and window or more, and numbers from 1 on")
    with claimed(out.absolute().parent), limited_to(1):
        content: Json = {"schema_version": VERSION["rejoining"], "seed": seed, "cells": []}
        if out.exists():
            content = read_json(out, "rejoining")
            check_same(out, {"seed": content["seed"]}, {"seed": seed})
        cells = {(c["task"], c["window"]): c for c in content["cells"]}
        blocks = range(-(-chains // BLOCK))
        places = [(task, window) for task in tasks for window in windows]
        policies = {task: load_checkpoint(shipped(task)).card["sha256"] for task in tasks}
        for task, window in places:
            policy = {"checkpoint_sha256": policies[task]}
            cell = cells.setdefault((task, window), new_cell(task, window) | policy)
            check_same(out, {name: cell.get(name, "unknown") for name in policy}, policy)
        content["cells"] = list(cells.values())
        todo = [
            (block, place)
            for block in blocks
            for place in places
            if cells[place]["chains"] <= block * BLOCK
        ]
        with Stage("blocks", len(todo), measuring=True) as stage:
            for done, (block, place) in enumerate(todo, start=1):
                add_block(cells[place], Pair(*place, observations).draw(seed + block))
                write_json(out, content)
                stage.update(done)
    print(table(content["cells"]))


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit status, as ``run_script``."""
    return run_script("bench.rejoining", study, __doc__, words)


if __name__ == "__main__":
    sys.exit(main())
