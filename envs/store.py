"""The zarr store of demonstrations: read, written from attempts, and put in the place of a smaller
one."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asd_policy.data.replay import OWN_FORMAT
from asd_policy.data.zarr_store import ZarrStore, write_zarr
from asd_policy.envs.attempts import read_attempt
from asd_policy.envs.recipe import Recipe, settings
from asd_policy.envs.workers import interrupts_held
from asd_policy.errors import InputError, OutputExistsError
from asd_policy.files import sync_tree


@dataclass(frozen=True)
class KeptStore:
    """A store that is there.

    Attributes:
        path: of it.
        recipe: that made it.
        attributes: all that it says of itself.
        attempts: how many made it.
        numbers: of those that succeeded, one for each episode.
        lengths: steps of each episode, (episodes,) int64.
    """

    path: Path
    recipe: Recipe
    attributes: dict[str, Any]
    attempts: int
    numbers: list[int]
    lengths: np.ndarray

    def outcomes(self) -> dict[int, bool]:
        """Number of each attempt that made it, and whether that succeeded."""
        kept = set(self.numbers)
        return {number: number in kept for number in range(self.attempts)}

    def columns(self) -> dict[str, np.ndarray]:
        """Every array of `data`, by its name.

        Raises:
            DatasetError: one is not what was written.
        """
        store = ZarrStore(self.path)
        return {name: store.read(f"data/{name}") for name in store.names("data")}


def read_store(path: Path) -> KeptStore | None:
    """The store at `path`, None if nothing is there.

    Raises:
        OutputExistsError: something else is there.
        DatasetError: it is a store, and damaged.
    """
    if not os.path.lexists(path):
        return None
    try:
        if path.is_file():
            raise InputError("it is a file")
        store = ZarrStore(path)
        attributes = store.attributes
        if attributes.get("format") != OWN_FORMAT:
            raise InputError(f"its format is {attributes.get('format')!r}")
        recipe, attempts = Recipe.of(attributes), int(attributes["attempts"])
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise OutputExistsError(
            f"{path} is there, and is no store of demonstrations that this version of asd-policy "
            f"knows ({error}); move it away, or choose another --out"
        ) from error
    numbers = [int(number) for number in store.read("meta/attempt")]
    lengths = np.diff(store.read("meta/episode_ends"), prepend=0)
    return KeptStore(path, recipe, attributes, attempts, numbers, lengths)


def check_nothing_else(store: Path) -> None:
    """Raise OutputExistsError where a store's folder holds more than the store: it is replaced
    whole when it grows."""
    own = {"data", "meta", ".zgroup", ".zattrs", ".zmetadata", "zarr.json", ".DS_Store"}
    others = sorted({path.name for path in store.iterdir()} - own)
    if others:
        raise OutputExistsError(
            f"{store} holds more than demonstrations ({', '.join(others):.200}), and grows by "
            "being replaced; move that away, or choose another --out"
        )


def write_store(
    path: Path, recipe: Recipe, done: Mapping[int, bool], folder: Path, kept: KeptStore | None
) -> None:
    """Write a store of the attempts `done` to `path`: those that made `kept` are taken from there,
    the others from their files in `folder`."""
    numbers = sorted(number for number, success in done.items() if success)
    columns: dict[str, list[np.ndarray]] = {}
    lengths: list[int] = []
    if kept is not None:
        columns = {name: [rows] for name, rows in kept.columns().items()}
        lengths = [int(length) for length in kept.lengths]
    for number in numbers[len(lengths) :]:
        attempt = read_attempt(folder, number)
        lengths.append(len(attempt["action"]))
        for name, rows in attempt.items():
            if name != "success":
                columns.setdefault(name, []).append(rows)
    shutil.rmtree(path, ignore_errors=True)
    arrays = {f"data/{name}": np.concatenate(parts) for name, parts in columns.items()}
    arrays["meta/episode_ends"] = np.cumsum(np.array(lengths, dtype=np.int64))
    arrays["meta/attempt"] = np.array(numbers, dtype=np.int64)
    write_zarr(path, arrays, _attributes(recipe, len(numbers), len(done)))
    sync_tree(path)


def _attributes(recipe: Recipe, episodes: int, attempts: int) -> dict[str, Any]:
    """How the store was made. Nothing that differs between two runs of the same recipe."""
    return {
        **settings(recipe),
        "episodes": episodes,
        "attempts": attempts,
        "dropped": attempts - episodes,
        "success_rate": episodes / attempts,
        "command": _command(recipe, episodes),
    }


def _command(recipe: Recipe, episodes: int) -> str:
    words = ["asd-policy", "demos", "--task", recipe.task, "--episodes", str(episodes)]
    words += ["--noise", str(recipe.noise), "--seed", str(recipe.seed)]
    every = recipe.interrupt_every
    words += ["--interrupt-every", str(every)] if every else []
    return shlex.join([*words, *(["--learner", "CHECKPOINT"] if recipe.learner else [])])


# --- in the place of a smaller one --------------------------------------------------------------


def replace_store(new: Path, out: Path, folder: Path) -> None:
    """Move the store `new` to `out`. A smaller one there waits in `folder` meanwhile: whatever
    happens, one of the two is whole, and `put_back` knows which."""
    old = folder / "old"
    with interrupts_held():
        if out.exists():
            out.rename(old)
        new.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def put_back(out: Path, folder: Path) -> None:
    """Undo a replacement that was killed between its two renames; clear away what one left."""
    old = folder / "old"
    if old.exists() and not out.exists():
        old.rename(out)
    for leftover in (old, folder / "store"):
        if leftover.is_symlink():
            leftover.unlink()
        shutil.rmtree(leftover, ignore_errors=True)
