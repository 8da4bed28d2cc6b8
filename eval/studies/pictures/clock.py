"""What pictures take by the clock on this machine: sequentially, and by ASD with each window."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from asd_policy.console import plain_console, say
from asd_policy.engine import ENGINES
from asd_policy.errors import InputError
from asd_policy.eval.runs.files import write_json
from asd_policy.eval.runs.pictures import ClockCell
from asd_policy.eval.runs.schemas import VERSION, read_json
from asd_policy.eval.runs.store import check_same
from asd_policy.eval.studies.pictures.calls import settings_of
from asd_policy.eval.studies.pictures.models import (
    OUT,
    Name,
    draw,
    load_pipeline,
    model_called,
    trained_steps,
)
from asd_policy.eval.studies.pictures.tables import print_clock
from asd_policy.files import claimed
from asd_policy.progress import Stage
from asd_policy.threads import limited_to

Json = dict[str, Any]
FIRST_SEED = 4_000_000


def clock(
    name: Name, /, out: Path = OUT, file: Path | None = None, batches: tuple[int, ...] = (1, 4, 16),
    windows: tuple[int, ...] = (8, 16, 32, 64), steps: int = 1000, turns: int = 2,
    device: str = "auto", engine: str = "eager",
) -> None:  # fmt: skip
    """Time pictures drawn together: sequentially, with each window, and with the one that "auto"
    chooses, in turns.

    Args:
        name: digits or scenes.
        out: Folder of the study.
        file: JSON file of the results, to begin or go on with; left out, <out>/<name>/clock.json.
        batches: Pictures drawn together.
        windows: Steps guessed ahead.
        steps: Of the chain.
        turns: How often each is timed; what is kept already counts.
        device: cpu, cuda or cuda:N; auto is a GPU where there is one.
        engine: What runs the network, for all of them.
    """
    model_called(name)
    if engine not in ENGINES:
        raise InputError(f"--engine is one of {', '.join(ENGINES)}; got {engine!r}")
    if min(*batches, *windows, steps, turns) < 1:
        raise InputError("expected numbers from 1 on")
    path = file or out / name / "clock.json"
    with claimed(path.parent), limited_to(1):
        pipeline, cells = load_pipeline(name, out, device), []
        settings, _ = settings_of(name, pipeline), trained_steps(pipeline, steps)
        how: Json = {"steps": steps, "engine": engine}
        if path.exists():
            there = read_json(path, "pictures_clock")
            before: Json = {"engine": "eager", **there}  # what it was before it was kept
            check_same(path, before["settings"] | {k: before[k] for k in how}, settings | how)
            cells = there["cells"]
        made: Json = {
            "schema_version": VERSION["pictures_clock"], "settings": settings, **how,
            "cells": cells,
        }  # fmt: skip
        asked: tuple[str | int, ...] = ("ddpm", "auto", *windows)
        work = [(b, w) for b in batches for w in asked]
        # A first picture, after which "auto" knows what a call costs and how drafts are accepted.
        draw(
            pipeline, "asd", FIRST_SEED, 1, window="auto", num_inference_steps=steps, engine=engine
        )
        with Stage("pictures timed", turns * len(work), measuring=True) as stage:
            for turn in range(turns):
                for i, (batch, window) in enumerate(work):
                    stage.update(turn * len(work) + i, f"{batch} together, {window}")
                    _timed(pipeline, cells, batch, window, how, turn)
                    write_json(path, made)
            stage.update(turns * len(work))
    print_clock(plain_console(), made)
    say(f"Kept: {path}")


def _timed(
    pipeline: Any, cells: list[ClockCell], batch: int, asked: str | int, how: Json, turn: int
) -> None:
    """Add one turn to the cell of this batch and window, unless it has it."""
    options: Json = {"sampler": "ddpm"} if asked == "ddpm" else {"window": asked}
    window: Any = {"ddpm": 1, "auto": None}.get(str(asked), asked)
    if window is not None:
        window = min(window, how["steps"])  # as it is kept
    mine = [c for c in cells if c["batch"] == batch and _is(c, window)]
    if mine and len(mine[0]["wall_s"]) > turn:
        return
    began = time.perf_counter(), time.process_time()
    _, stats = draw(
        pipeline, options.pop("sampler", "asd"), FIRST_SEED, batch,
        num_inference_steps=how["steps"], engine=how["engine"], **options,
    )  # fmt: skip
    wall, processor = time.perf_counter() - began[0], time.process_time() - began[1]
    if not mine:
        mine = [{
            "batch": batch, "window": stats.window, "auto": asked == "auto",
            "calls": float(stats.calls.max()),
            "evaluations": float(stats.evaluations.double().mean()),
            "processor_s": [], "wall_s": [],
        }]  # fmt: skip
        cells += mine
    mine[0]["processor_s"].append(processor)
    mine[0]["wall_s"].append(wall)


def _is(cell: Any, window: Any) -> bool:
    return cell["auto"] if window is None else not cell["auto"] and cell["window"] == window
