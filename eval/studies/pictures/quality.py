"""How good samplers' pictures are: distances to DDPM's own and to the training pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asd_policy.console import plain_console, say
from asd_policy.data.replay import DAMAGED_NPZ
from asd_policy.errors import AsdPolicyError, InputError
from asd_policy.eval.runs.files import write_json
from asd_policy.eval.runs.pictures import PicturesQuality
from asd_policy.eval.runs.schemas import VERSION, read_json
from asd_policy.eval.runs.store import check_same
from asd_policy.eval.studies.pictures.calls import settings_of
from asd_policy.eval.studies.pictures.distances import compare
from asd_policy.eval.studies.pictures.features import (
    FEATURES,
    Extract,
    Kept,
    classifier_features,
    inception_features,
    standardized,
)
from asd_policy.eval.studies.pictures.figures import plot_sheet
from asd_policy.eval.studies.pictures.models import (
    OUT,
    Name,
    as_pixels,
    as_values,
    draw,
    load_pipeline,
    model_called,
    pictures_of,
)
from asd_policy.eval.studies.pictures.tables import print_quality
from asd_policy.files import claimed, replacing
from asd_policy.progress import Stage
from asd_policy.threads import limited_to

Json = dict[str, Any]
REFERENCE, YARDSTICK = "ddpm", "ddpm-again"
SAMPLERS = (REFERENCE, YARDSTICK, "asd", "paradigms", "ddim-100", "ddim-50")
SEEDS = 1_000_000  # between the first picture of one sampler and that of the next
SHOWN = 16  # pictures in a row of the sheet


def quality(
    name: Name, /, out: Path = OUT, file: Path | None = None,
    samplers: tuple[str, ...] = SAMPLERS, pictures: int = 1000, batch: int = 50, rows: int = 128,
    window: int = 64, inception: Path | None = None, device: str = "auto",
) -> None:  # fmt: skip
    """Draw pictures with each sampler and compare them, by features, with DDPM's and with data.

    Pictures are kept in <out>/<name>/samples, a file a batch: more may be drawn later.

    Args:
        name: digits or scenes.
        out: Folder of the study.
        file: JSON file of the results; left out, <out>/<name>/quality.json.
        samplers: ddpm is the reference; ddpm-again, with other seeds, tells what chance does.
        pictures: Of each sampler.
        batch: Pictures drawn together.
        rows: The most rows in one run of the network.
        window: Of asd and of paradigms.
        inception: torchvision's weights of Inception v3 on this disk, in place of the network
            that was trained beside the model.
        device: cpu, cuda or cuda:N; auto is a GPU where there is one.
    """
    model_called(name)
    if not {REFERENCE, YARDSTICK} <= set(samplers) <= set(SAMPLERS):
        raise InputError(
            f"--samplers takes some of {', '.join(SAMPLERS)}, {REFERENCE} and {YARDSTICK} among "
            f"them; got {', '.join(samplers) or 'none'}"
        )
    if min(pictures, batch, rows, window) < 1 or pictures < 2:
        raise InputError("expected two pictures or more, and other numbers from 1 on")
    path = file or out / name / "quality.json"
    with claimed(out / name), limited_to(1):
        settings = draw_all(name, out, samplers, pictures, (batch, rows, window), device)
        kept = classifier_features(out / name / FEATURES)
        data = pictures_of(name, out, kept.episodes)
        told = _told(name, kept, data.values, inception)
        sets = {s: drawn(out / name / "samples", s, pictures) for s in samplers}
        found = judge(sets, data.values, told, {"settings": settings, "window": window})
        write_json(path, found)
        _sheet(sets, data.values, path.with_name(f"{path.stem}_samples.webp"))
    print_quality(plain_console(), found)
    say(f"Kept: {path}")


def draw_all(
    name: str, out: Path, samplers: Iterable[str], pictures: int, sizes: tuple[int, int, int],
    device: str,
) -> Json:  # fmt: skip
    """Draw what is missing of so many pictures of each sampler; batch by batch, sampler by sampler,
    so that there are as many of each whenever it is stopped."""
    batch, rows, window = sizes
    pipeline, folder = load_pipeline(name, out, device), out / name / "samples"
    settings = settings_of(name, pipeline)
    _check_same(folder, settings | {"window": window, "batch": batch})
    wanted = [(i, s) for i in range(-(-pictures // batch)) for s in samplers]
    todo = [(i, s) for i, s in wanted if not _file(folder, s, i).exists()]
    with Stage("batches of pictures", len(wanted), len(wanted) - len(todo)) as stage:
        for done, (i, sampler) in enumerate(todo, start=len(wanted) - len(todo)):
            stage.update(done, sampler)
            first = SEEDS * (1 + SAMPLERS.index(sampler)) + i * batch
            options: Json = {"window": window} if sampler in ("asd", "paradigms") else {}
            values, stats = draw(
                pipeline, sampler.removesuffix("-again"), first, batch, rows_at_once=rows, **options
            )
            costs = {"calls": stats.calls.numpy(), "evaluations": stats.evaluations.numpy()}
            _keep(_file(folder, sampler, i), {"pictures": as_pixels(values), **costs})
        stage.update(len(wanted))
    return settings


def _check_same(folder: Path, settings: Json) -> None:
    """Raise where the folder's pictures were drawn otherwise; note how these are."""
    note = folder / "settings.json"
    form = {"schema_version": VERSION["pictures_samples"]}
    if note.exists():
        there = read_json(note, "pictures_samples")
        check_same(folder, {k: v for k, v in there.items() if k not in form}, settings)
    else:
        write_json(note, form | settings)


def _keep(path: Path, arrays: Json) -> None:
    with replacing(path) as file:
        np.savez(file, **arrays)


def _file(folder: Path, sampler: str, batch: int) -> Path:
    return folder / sampler / f"{batch:04d}.npz"


def drawn(folder: Path, sampler: str, pictures: int) -> dict[str, np.ndarray]:
    """Up to so many of a sampler's pictures (n, H, W, C), with their calls and evaluations.

    Raises:
        AsdPolicyError: a file is damaged.
    """
    parts: list[dict[str, np.ndarray]] = []
    for path in sorted((folder / sampler).glob("*.npz")):
        try:
            with np.load(path) as kept:
                parts.append({key: kept[key] for key in ("pictures", "calls", "evaluations")})
        except DAMAGED_NPZ as error:
            raise AsdPolicyError(
                f"{path} is damaged ({error}); remove it, and it is made anew"
            ) from error
    return {key: np.concatenate([part[key] for part in parts])[:pictures] for key in parts[0]}


def _told(name: str, kept: Kept, data: Tensor, inception: Path | None) -> tuple[Extract, Json]:
    """What gives features, and what is said of it."""
    if inception is not None:
        told: Json = {"features": "torchvision's Inception v3", "features_accuracy": None}
        return inception_features(inception), told
    told = {"features": f"a small network trained to name {name}"}
    return standardized(kept.extract, data), told | {"features_accuracy": kept.accuracy}


def judge(
    drawn: Mapping[str, Mapping[str, np.ndarray]], data: Tensor, told: tuple[Extract, Json],
    more: Json,
) -> PicturesQuality:  # fmt: skip
    """The content of quality.json.

    Args:
        drawn: sampler → its pictures, calls and evaluations. data: (N, C, H, W).
        told: what gives features, and what is said of it. more: settings and window.
    """
    extract, about = told
    sets = {s: extract(as_values(each["pictures"])) for s, each in drawn.items()}
    there = extract(data)
    to_ddpm = compare(sets, REFERENCE, YARDSTICK)
    to_data = compare({**sets, "data": there}, "data", YARDSTICK)
    content: Any = {
        "schema_version": VERSION["pictures_quality"],
        **more,
        **about,
        "width": there.shape[1],
        "data": len(data),
        "samplers": {
            s: {
                "pictures": len(each["pictures"]),
                "calls": float(each["calls"].mean()),
                "evaluations": float(each["evaluations"].mean()),
                "to_ddpm": to_ddpm.get(s),
                "to_data": to_data[s],
            }
            for s, each in drawn.items()
        },
    }
    made: PicturesQuality = content
    return made


def _sheet(drawn: Mapping[str, Mapping[str, np.ndarray]], data: Tensor, path: Path) -> None:
    chosen = np.random.default_rng(0).choice(len(data), SHOWN, replace=False)
    rows = {"data": as_pixels(data[torch.from_numpy(chosen)])}
    rows |= {s: each["pictures"][:SHOWN] for s, each in drawn.items()}
    plot_sheet(rows, path, 64 // data.shape[-1])
