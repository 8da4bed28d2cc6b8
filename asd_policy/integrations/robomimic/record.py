"""What robomimic's rollouts do not say: each episode's outcome, and the policy's time in it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from robomimic.envs.wrappers import EnvWrapper

from asd_policy.data.scenes import scene_digest
from asd_policy.errors import counted
from asd_policy.files import replacing
from asd_policy.integrations.robomimic_format import RECORDING_VERSION


@dataclass
class Episode:
    """One rollout. ``scene``: SHA-256 of the first observation, which says whether two episodes
    began alike. ``calls``: network calls of each chunk, where the policy counts them."""

    seed: int | None
    scene: str | None = None
    success: bool = False
    steps: int = 0
    policy_s: float = 0.0
    simulation_s: float = 0.0
    calls: list[int] = field(default_factory=list)


class Recording:
    """The episodes of one run of a script.

    Args:
        seed: of the first episode, the next ones count up: then an episode's scene and noise
            depend on its number alone, and two runs are paired. None leaves seeds alone.
        out: file for the episodes, written anew as each of them ends (JSON).
        about: what else to write into it.
    """

    def __init__(
        self, seed: int | None = None, out: Path | None = None, about: dict[str, Any] | None = None
    ) -> None:
        self.seed, self.out, self.about = seed, out, about or {}
        self.episodes: list[Episode] = []

    @property
    def now(self) -> Episode:
        return self.episodes[-1]

    def begin(self) -> None:
        """A new episode, before its scene is made."""
        self.save()
        seed = None if self.seed is None else self.seed + len(self.episodes)
        self.episodes.append(Episode(seed))
        if seed is not None:
            np.random.seed(seed)  # noqa: NPY002 - robomimic's scenes follow it
            torch.manual_seed(seed)

    def policy(self, policy: Any) -> Any:
        """The same policy, watched. Python looks ``__call__`` up on the class: it gets its own."""
        kind = type(policy)

        def start_episode(*args: Any, **kwargs: Any) -> None:
            self.begin()
            kind.start_episode(policy, *args, **kwargs)

        def __call__(this: Any, *args: Any, **kwargs: Any) -> Any:
            if self.now.scene is None:
                self.now.scene = scene_digest(args[0] if args else kwargs["ob"])
            start = time.perf_counter()
            action = kind.__call__(this, *args, **kwargs)
            self.now.policy_s += time.perf_counter() - start
            self.now.steps += 1
            self.now.calls += [c.calls for c in getattr(this, "last_chunks", []) if c is not None]
            return action

        policy.__class__ = type(kind.__name__, (kind,), {"__call__": __call__})
        policy.start_episode = start_episode
        return policy

    def save(self) -> None:
        """Write what is known, replacing the file in one move."""
        if self.out is None or not self.episodes:
            return
        content = {
            "schema_version": RECORDING_VERSION, **self.about,
            "episodes": [asdict(episode) for episode in self.episodes],
        }  # fmt: skip
        with replacing(self.out) as file:
            file.write(json.dumps(content, indent=1).encode() + b"\n")

    def __str__(self) -> str:
        steps = sum(episode.steps for episode in self.episodes)
        policy, simulation = (
            sum(getattr(episode, name) for episode in self.episodes)
            for name in ("policy_s", "simulation_s")
        )
        calls = [count for episode in self.episodes for count in episode.calls]
        text = (
            f"Policy: {policy:.2f} s in {steps} control steps, {1e3 * policy / steps:.2f} ms each; "
            f"simulation: {simulation:.2f} s"
        )
        if calls:
            text += f"; {counted(len(calls), 'chunk')} of {sum(calls) / len(calls):.1f} calls"
        return text


class RecordedEnvironment(EnvWrapper):
    """An environment whose time and success are written down."""

    def __init__(self, env: Any, recording: Recording) -> None:
        self.recording = recording
        super().__init__(env)

    def _timed(self, function: Callable[..., Any], *args: Any) -> Any:
        start = time.perf_counter()
        made = function(*args)
        self.recording.now.simulation_s += time.perf_counter() - start
        return made

    def reset(self) -> Any:
        return self._timed(self.env.reset)

    def reset_to(self, state: Any) -> Any:
        return self._timed(self.env.reset_to, state)

    def step(self, action: Any) -> Any:
        return self._timed(self.env.step, action)

    def is_success(self) -> Any:
        made = self.env.is_success()
        self.recording.now.success |= bool(made["task"])
        return made
