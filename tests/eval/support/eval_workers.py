"""Worlds that go wrong in their worker process, importable there."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from eval_standin import LineEnv

from asd_policy.errors import NonFiniteError


class Traced(LineEnv):
    """Leaves a file named by its process in `folder`."""

    def __init__(self, horizon: int, step_s: float, folder: Path):
        super().__init__(horizon, step_s)
        (folder / f"pid-{os.getpid()}").touch()
        self.folder = folder


class Dies(Traced):
    """Kills its process at step `at` of the episode `seed` (0: at its reset), the first `times`."""

    def __init__(self, horizon: int, step_s: float, folder: Path, seed: int, at: int, times: int):
        super().__init__(horizon, step_s, folder)
        self.doomed, self.at, self.times = seed, at, times

    def reset(self, *, seed: int) -> Any:
        self.seed = seed
        observation = super().reset(seed=seed)
        self._perhaps_die()
        return observation

    def step(self, action: Any) -> Any:
        moment = super().step(action)
        self._perhaps_die()
        return moment

    def _perhaps_die(self) -> None:
        deaths = len(list(self.folder.glob("death-*")))
        if (self.seed, self.steps) == (self.doomed, self.at) and deaths < self.times:
            (self.folder / f"death-{deaths}").touch()
            os.kill(os.getpid(), signal.SIGKILL)


class Unpicklable(Exception):
    def __init__(self, a: int, b: int):
        super().__init__(f"{a} and {b}: 100%d")


class Fails(LineEnv):
    """Raises `kind` in its third step."""

    def __init__(self, horizon: int, step_s: float, kind: str):
        super().__init__(horizon, step_s)
        self.kind = kind

    def step(self, action: Any) -> Any:
        if self.steps == 2:
            if self.kind == "non-finite":
                raise NonFiniteError("expected finite observations, got nan")
            if self.kind == "unpicklable":
                raise Unpicklable(1, 2)
            return {}["no such key"]
        return super().step(action)


class NotMade(LineEnv):
    def __init__(self, horizon: int, step_s: float):
        raise FileNotFoundError("no such mesh")
