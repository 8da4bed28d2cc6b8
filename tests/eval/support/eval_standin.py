"""A world and a policy that keep the real ones' contract and cost nothing, for the evaluator.

A point on a line starts at a place drawn from the episode's seed and is pushed toward zero; the
policy's push is drawn from its own random stream, which depends on the episode's seed alone.
Imports no torch: tests start many processes of this.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from asd_policy.eval.plan import Parts
from asd_policy.eval.rollout.loop import Setup
from asd_policy.eval.slots import LocalSlot
from asd_policy.eval.slots import open_slots as open_workers

K, CHUNK, TAIL = 10, 4, 3
CALLS = {"ddpm": K, "asd": 3, "ddim": 2, "paradigms": 4}


class LineEnv:
    """Observation {"place": (1,)}; success within 0.5 of zero."""

    def __init__(self, horizon: int = 40, step_s: float = 0.0, frames: bool = True):
        self.horizon, self.step_s, self.frames = horizon, step_s, frames
        self.closed = False

    def reset(self, *, seed: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        self.place = float(np.random.default_rng(seed).uniform(4.0, 8.0))
        self.steps = 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict]:
        time.sleep(self.step_s)
        self.place += float(action[0])
        self.steps += 1
        success = abs(self.place) < 0.5
        truncated = self.steps >= self.horizon
        return self._observation(), float(success), success, truncated, {"is_success": success}

    stages = ("half way", "there")

    def has_reached(self, stage: str) -> bool:
        return abs(self.place) < {"half way": 3.0, "there": 0.5}[stage]

    def render(self) -> np.ndarray:
        if not self.frames:
            raise ImportError("no OpenGL here")
        frame = np.zeros((32, 32, 3), np.uint8)
        frame[:, min(31, int(abs(self.place)) * 4)] = 255
        return frame

    def close(self) -> None:
        self.closed = True

    def _observation(self) -> dict[str, np.ndarray]:
        return {"place": np.array([self.place], np.float32)}


class PushPolicy:
    """Chunks of pushes; one queue and one random stream for each environment."""

    observation_keys: Mapping[str, int] = {"place": 1}
    pictures: Mapping[str, tuple[int, int]] = {}
    horizons = (1, CHUNK, CHUNK + TAIL)

    def __init__(self, sampler: str, window: object = "auto"):
        self.sampler = sampler
        self.window = 5 if window == "auto" else int(window)  # type: ignore[call-overload]
        self.last_chunks: list[SimpleNamespace | None] = []
        self.begun: list[int] = []
        self.batches: list[int] = []
        self.drawn: list[int] = []  # chunks drawn at once
        self.on_draw: Callable[[SimpleNamespace], None] = lambda draw: None

    def reset(self, seeds: Sequence[int]) -> None:
        self.seeds = list(seeds)
        self.streams = [np.random.default_rng([7, seed]) for seed in seeds]
        self.numbers = [0 for _ in seeds]
        self.seen: list[np.ndarray] = [np.zeros(1, np.float32) for _ in seeds]
        self.queues: list[list[float]] = [[] for _ in seeds]

    def reset_env(self, index: int, seed: int) -> None:
        self.begun.append(seed)
        self.seeds[index], self.numbers[index] = seed, 0
        self.streams[index] = np.random.default_rng([7, seed])
        self.queues[index] = []

    def queued(self, index: int) -> int:
        return len(self.queues[index])

    def coming(self, index: int) -> list[np.ndarray]:
        return [np.array([push], np.float32) for push in self.queues[index]]

    def act_batch(self, obs: Mapping[str, np.ndarray], indices: Sequence[int]) -> np.ndarray:
        self.observe(obs, indices)
        self.batches.append(len(indices))
        empty = [i for i in indices if not self.queues[i]]
        costs = dict.fromkeys(indices)
        if empty:
            for i, chunk in zip(empty, self.predict(empty), strict=True):
                self.queues[i] = list(chunk[:CHUNK, 0])
            costs |= dict(zip(empty, self.last_chunks, strict=True))
        self.last_chunks = [costs[i] for i in indices]
        return np.array([[self.queues[i].pop(0)] for i in indices], np.float32)

    def observe(self, obs: Mapping[str, np.ndarray], indices: Sequence[int]) -> None:
        assert obs["place"].shape == (len(indices), 1), obs["place"].shape
        for i, place in zip(indices, obs["place"], strict=True):
            self.seen[i] = place

    def predict(self, indices: Sequence[int]) -> np.ndarray:
        """Chunks of CHUNK pushes that are executed, and of TAIL more."""
        pushes = [-self.streams[i].uniform(0.1, 1.2, CHUNK) for i in indices]
        chunks = np.array([[*p, *p[:TAIL]] for p in pushes], np.float32)[:, :, None]
        self.last_chunks = [self._cost() for _ in indices]
        self.drawn.append(len(indices))
        self.on_draw(
            SimpleNamespace(
                seeds=[self.seeds[i] for i in indices],
                numbers=[self.numbers[i] for i in indices],
                histories=np.stack([self.seen[i][None] for i in indices]),
                slopes=None,
                chunks=chunks,
                stats=self.last_chunks,
            )
        )
        for i in indices:
            self.numbers[i] += 1
        return chunks

    def _cost(self) -> SimpleNamespace:
        calls = CALLS[self.sampler]
        accepted, decided = np.zeros(K, int), np.zeros(K, int)
        if self.sampler == "asd":
            decided[:] = 2
            accepted[:] = 2
            accepted[-1] = 1
        ms = 1e-3 * calls
        return SimpleNamespace(
            latency_s=ms, batch=1, sampler=self.sampler, window=self.window, calls=calls,
            evaluations=2 * calls, rejections=calls - 1, accepted=accepted, decided=decided,
            draft_s=0.1 * ms, network_s=0.8 * ms, verify_s=0.06 * ms, other_s=0.04 * ms,
        )  # fmt: skip


def open_here(make: Callable[[], Any], count: int) -> list[LocalSlot]:
    return [LocalSlot(make) for _ in range(count)]


def prepare(
    parts: Parts,
    *,
    step_s: float = 0.0,
    env_class: Callable[..., Any] = LineEnv,
    workers: bool = False,
) -> Setup:
    """Stand-ins for the real policies and environments; several environments are in this process
    too, unless `workers`."""
    make = functools.partial(env_class, parts.horizon or 40, step_s)
    settings = parts.samplers
    return Setup(
        policies={
            name: PushPolicy(s["sampler"], s.get("window", "auto")) for name, s in settings.items()
        },
        slots=(open_workers if workers else open_here)(make, parts.num_envs),
        render_fps=20.0,
        checkpoint_sha256="0" * 64,
        resolved={
            "device": "cpu",
            "gpu": None,
            "threads": 1,
            "engine": "eager",
            "kernels": "native",
            "precision": "fp32",
            "compile": False,
            "parameters": 7,
            "checkpoint": "checkpoints/lift",
            "horizons": [1, CHUNK, CHUNK],
            "control_hz": 20,
            "steps": {name: s["steps"] or K for name, s in settings.items()},
        },
    )


def lines(folder: Path) -> list[dict[str, Any]]:
    """The episodes of a run, as they are kept."""
    return [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]


def timeless(folder: Path, *without: str) -> dict[tuple[str, int], dict[str, Any]]:
    """Of each episode what the clock did not decide; and of its chunks, without some keys."""

    def kept(record: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in record.items() if not k.endswith("_s") and k not in without}

    found = lines(folder)
    made = {
        (e["sampler"], e["seed"]): kept(e) | {"chunks": [kept(c) for c in e["chunks"]]}
        for e in found
    }
    assert len(made) == len(found), "an episode is counted twice"
    return made
