"""What a picture costs: calls and evaluations by sampler, number of steps and window."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asd_policy.console import plain_console, say
from asd_policy.envs.requirements import installed_version
from asd_policy.errors import InputError
from asd_policy.eval.runs.files import write_json
from asd_policy.eval.runs.machine import describe_machine
from asd_policy.eval.runs.pictures import BINS, CallsCell, Growth, PicturesCalls
from asd_policy.eval.runs.schemas import VERSION, read_json
from asd_policy.eval.runs.store import check_same
from asd_policy.eval.studies.pictures.figures import plot_calls
from asd_policy.eval.studies.pictures.models import (
    OUT,
    Name,
    draw,
    load_pipeline,
    model_called,
    parameters,
    trained_steps,
)
from asd_policy.eval.studies.pictures.tables import print_calls
from asd_policy.files import claimed
from asd_policy.progress import Stage
from asd_policy.samplers.config import SamplerConfig
from asd_policy.threads import limited_to

Json = dict[str, Any]
SAMPLERS = ("asd", "asd-frozen", "asd-paper")
STEPS = (100, 200, 400, 1000)
WINDOWS = (8, 32, 64, 128, 256, 1000)
FIRST_SEED = 3_000_000


def calls(
    name: Name, /, out: Path = OUT, file: Path | None = None,
    samplers: tuple[str, ...] = SAMPLERS, steps: tuple[int, ...] = STEPS,
    windows: tuple[int, ...] = WINDOWS, window: int = 128, chains: int = 16, rows: int = 128,
    device: str = "auto",
) -> None:  # fmt: skip
    """Count calls and evaluations by sampler: against the number of steps, with one window, and
    against the window, with all steps. Draws the figures of it.

    Args:
        name: digits or scenes.
        out: Folder of the study.
        file: JSON file of the results, to begin or go on with; left out, <out>/<name>/calls.json.
        samplers: Forms of ASD, or others to compare with.
        steps: Numbers of steps, with --window.
        windows: Windows, with all steps that the model was trained for.
        window: Of the chains with other numbers of steps.
        chains: Pictures in each cell; one that has fewer is counted again.
        rows: The most rows in one run of the network.
        device: cpu, cuda or cuda:N; auto is a GPU where there is one.
    """
    model_called(name)
    if not samplers or min((window, chains, rows, *steps, *windows), default=0) < 1:
        raise InputError("expected one sampler or more, and numbers from 1 on")
    for sampler in samplers:
        SamplerConfig.named(sampler, window=window)  # an unknown one is refused at once
    path = file or out / name / "calls.json"
    with claimed(path.parent), limited_to(1):
        pipeline = load_pipeline(name, out, device)
        most = trained_steps(pipeline, *steps)
        settings, kept = settings_of(name, pipeline), []
        if path.exists():
            there = read_json(path, "pictures_calls")
            check_same(path, there["settings"], settings)
            kept = there["cells"]
        pairs = [(k, min(window, k)) for k in steps] + [(most, min(w, most)) for w in windows]
        wanted = [(s, k, w) for k, w in dict.fromkeys(pairs) for s in samplers]
        known = {identity(c) for c in kept if c["chains"] >= chains}
        todo = [each for each in wanted if each not in known]
        with Stage("cells", len(wanted), len(wanted) - len(todo)) as stage:
            for done, each in enumerate(todo, start=len(wanted) - len(todo)):
                sampler, many, wide = each
                stage.update(done, f"{sampler}, K = {many}, window {wide}")
                made = cell(pipeline, sampler, many, wide, chains, rows)
                kept = [c for c in kept if identity(c) != each] + [made]
                write_json(path, summarize(settings, kept, window))
            stage.update(len(wanted))
        found = summarize(settings, kept, window)
        plot_calls(found, path.with_suffix(".svg"))
    print_calls(plain_console(), found)
    say(f"Kept: {path}")


def identity(cell: Any) -> tuple[str, int, int]:
    """What a cell is of."""
    return cell["sampler"], cell["steps"], cell["window"]


def settings_of(name: str, pipeline: Any) -> Json:
    """What results depend on besides their options."""
    digest = hashlib.sha256()
    for key, tensor in sorted(pipeline.unet.state_dict().items()):
        digest.update(key.encode() + tensor.contiguous().cpu().numpy().tobytes())
    cuda = pipeline.device.type == "cuda"
    gpu = torch.cuda.get_device_name(pipeline.device) if cuda else None
    machine = describe_machine({"threads": torch.get_num_threads(), "gpu": gpu})
    return {
        "model": name,
        "weights_sha256": digest.hexdigest(),
        "parameters": parameters(pipeline.unet),
        "cpu": machine["cpu"],
        "threads": machine["threads"],
        "gpu": gpu,
        "versions": {each: installed_version(each) for each in ("diffusers", "torch")},
    }


def cell(
    pipeline: Any, sampler: str, steps: int, window: int, chains: int, rows: int
) -> CallsCell:  # fmt: skip
    """Costs of so many chains; the same streams for every cell of a number of steps."""
    _, stats = draw(
        pipeline, sampler, FIRST_SEED, chains,
        window=window, num_inference_steps=steps, rows_at_once=rows,
    )  # fmt: skip
    used = stats.calls.double()
    decided, accepted = (t.double().mean(0).numpy() for t in (stats.decided, stats.accepted))
    return {
        "sampler": sampler, "steps": steps, "window": window, "chains": chains,
        "calls": float(used.mean()),
        "calls_error": float(used.std() / chains**0.5) if chains > 1 else None,
        "evaluations": float(stats.evaluations.double().mean()),
        "decided": _binned(decided), "rejected": _binned(decided - accepted),
    }  # fmt: skip


def _binned(by_step: np.ndarray) -> list[float]:
    where = BINS * np.arange(len(by_step)) // len(by_step)
    found = np.bincount(where, by_step, minlength=BINS)
    return [round(float(value), 3) for value in found]


def summarize(settings: Json, cells: Sequence[CallsCell], window: int) -> PicturesCalls:
    """The content of calls.json."""
    content: Any = {
        "schema_version": VERSION["pictures_calls"],
        "settings": settings,
        "growth": {
            name: found
            for name in dict.fromkeys(each["sampler"] for each in cells)
            if (found := growth([c for c in cells if c["sampler"] == name], window))
        },
        "cells": list(cells),
    }
    made: PicturesCalls = content
    return made


def growth(cells: Sequence[CallsCell], window: int) -> Growth | None:
    """How calls grow with K; None of fewer than two numbers of steps. Where fewer
    were counted with the window, of the one with which most were."""

    def with_window(wide: int) -> dict[int, float]:
        return {c["steps"]: c["calls"] for c in cells if c["window"] == min(wide, c["steps"])}

    if len(with_window(window)) < 2:
        window = max((c["window"] for c in cells), key=lambda wide: len(with_window(wide)))
    found = with_window(window)
    if len(found) < 2:
        return None
    steps = sorted(found)
    slope, start = np.polyfit(np.log(steps), np.log([found[k] for k in steps]), 1)
    return {
        "exponent": float(slope), "factor": float(np.exp(start)), "steps": steps, "window": window,
    }  # fmt: skip
