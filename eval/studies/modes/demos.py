"""Demonstrations of ways past the board, each way with the chance that the expert takes it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from asd_policy.console import say
from asd_policy.data.replay import DAMAGED_NPZ, Replay, save_npz
from asd_policy.envs.episodes import Episode, run_episode
from asd_policy.errors import AsdPolicyError, InputError
from asd_policy.eval.studies.modes.board import Board
from asd_policy.files import claimed
from asd_policy.progress import Stage

OUT = Path("outputs/modes")
DEMOS = "demos.npz"


def demos(out: Path = OUT, episodes: int = 120, noise: float = 0.03, seed: int = 0) -> None:
    """Record successes of the scripted expert in <out>/demos.npz.

    Args:
        out: Folder of all three steps.
        episodes: Successes to record.
        noise: Standard deviation of what is added to the executed actions, in action units. The
            actions that are kept are without.
        seed: Of the whole collection.
    """
    if episodes < 1:
        raise InputError(f"--episodes takes whole numbers from 1 on; got {episodes}")
    made, raw = out / DEMOS, out / f"episodes-{seed}-{noise:g}"
    with claimed(out):
        raw.mkdir(exist_ok=True)
        good = sum("success" in path.stem for path in raw.glob("*.npz"))
        number, env = len(list(raw.glob("*.npz"))), Board()
        with Stage("demonstrations", episodes, good) as stage:
            while good < episodes:
                episode = run_episode(env, noise, seed, number)
                keep(raw, number, episode, env.sides)
                number, good = number + 1, good + episode.success
                stage.update(good, f"{number - good} failed")
        save_npz(joined(sorted(raw.glob("*-success.npz"))[:episodes]), made)
    say(f"Demonstrations: {made}")


def keep(raw: Path, number: int, episode: Episode, sides: Sequence[int]) -> None:
    """Write an episode, and the sides on which it passed, to a file of a folder."""
    outcome = "success" if episode.success else "failure"
    arrays = {f"observation/{key}": rows for key, rows in episode.observations.items()}
    with open(raw / "part", "wb") as file:
        np.savez(file, sides=sides, action=episode.action, **arrays)
    os.replace(raw / "part", raw / f"{number:06d}-{outcome}.npz")


def joined(files: list[Path]) -> Replay:
    """The episodes of these files, in order."""
    episodes = []
    for path in files:
        try:
            with np.load(path) as arrays:
                episodes.append({name: arrays[name] for name in arrays.files})
        except DAMAGED_NPZ as error:
            raise AsdPolicyError(
                f"{path} is damaged ({error}); remove it to record others"
            ) from error
    rows = {name: np.concatenate([each[name] for each in episodes]) for name in episodes[0]}
    sides = [each["sides"].tolist() for each in episodes]
    start = "observation/"
    return Replay(
        {name.removeprefix(start): rows[name] for name in rows if name.startswith(start)},
        rows["action"],
        np.cumsum([len(each["action"]) for each in episodes]),
        np.zeros(len(rows["action"]), bool),
        {"sides": sides},
    )
