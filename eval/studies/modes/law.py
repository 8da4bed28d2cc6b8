"""Chunks at observations that leave two ways: to which side they swing, and what is in between.

A swing is the sum of the commands along x, from the present action of a chunk to its last: the hand
is somewhere between two rows, and a chunk reaches past the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from asd_policy.data.replay import load_npz
from asd_policy.envs.episodes import run_episode
from asd_policy.eval.runs.modes import AtRow, Swings
from asd_policy.eval.studies.modes.board import MIDDLE, NEAR, ROWS, Board
from asd_policy.policy import DiffusionPolicy

EDGES = np.round(np.arange(-5.0, 5.01, 0.2), 1)  # of histograms, in units of actions
_HELD_OUT = 1  # seed of the expert's episodes whose observations are taken


def turning_points(hand: np.ndarray) -> list[int]:
    """Step of an episode, before each row, at which the hand's path (T, 3) does not yet tell the
    side: it has just come before the board, or beside a post of the row before."""
    x, y = hand[:, 0], hand[:, 1]
    return [int(np.argmax(x > MIDDLE - NEAR)), *(int(np.argmax(y > row)) for row in ROWS[:-1])]


def demonstrated(path: Path, horizon: int) -> tuple[list[AtRow], list[Swings]]:
    """What the demonstrations of a file swing before each row, over so many actions."""
    replay = load_npz(path)
    ends = replay.episode_ends
    firsts, sides = np.array([0, *ends[:-1]]), np.array(replay.attributes["sides"])
    hand = replay.observations["robot0_eef_pos"]
    swings = np.zeros((len(ends), len(ROWS)))
    for i, (first, end) in enumerate(zip(firsts, ends, strict=True)):
        for row, step in enumerate(turning_points(hand[first:end])):
            chunk = replay.actions[first + step : min(first + step + horizon, end), 0]
            swings[i, row] = chunk.sum()
    rows: list[AtRow] = []
    for row in range(len(ROWS)):
        left, right = (float(np.median(swings[sides[:, row] == s, row])) for s in (-1, 1))
        rows.append({"left": left, "right": right})
    counted = [counts("demonstrations", r, swings[:, r], rows[r]) for r in range(len(ROWS))]
    return rows, counted


def counts(sampler: str, row: int, swings: np.ndarray, modes: AtRow) -> Swings:
    """How many of some swings are in either mode, and between."""
    share = (swings - modes["left"]) / (modes["right"] - modes["left"])
    inner = np.clip(swings, EDGES[0], EDGES[-1])
    return {
        "sampler": sampler, "row": row, "left": int((share < 0.25).sum()),
        "between": int(((share >= 0.25) & (share <= 0.75)).sum()),
        "right": int((share > 0.75).sum()), "histogram": np.histogram(inner, EDGES)[0].tolist(),
    }  # fmt: skip


def added(a: Swings, b: Swings) -> Swings:
    """Both together, of one sampler at one row."""
    total = [x + y for x, y in zip(a["histogram"], b["histogram"], strict=True)]
    sums: Swings = {**a, "histogram": total}
    sums["left"] += b["left"]
    sums["between"] += b["between"]
    sums["right"] += b["right"]
    return sums


def ambiguous(policy: DiffusionPolicy) -> list[np.ndarray]:
    """A history (To, Do) before each row, of an expert's episode that was not learned from."""
    episode = run_episode(Board(), 0.0, _HELD_OUT, 0)
    seen = np.concatenate([episode.observations[key] for key in policy.observation_keys], axis=1)
    frames = policy.config.obs_horizon
    steps = turning_points(episode.observations["robot0_eef_pos"])
    return [seen[step - frames + 1 : step + 1] for step in steps]


def draw(policy: DiffusionPolicy, history: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
    """Swings of chunks for one history, each with its own seed."""
    streams = [policy.stream(seed) for seed in seeds]
    chunks, _ = policy.sample(np.repeat(history[None], len(seeds), axis=0), streams)
    return np.asarray(chunks[:, policy.config.obs_horizon - 1 :, 0].sum(axis=1))
