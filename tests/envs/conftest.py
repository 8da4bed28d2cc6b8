"""Environments and demonstrations are made once for all tests: they cost seconds."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from asd_policy.envs.demos import collect
from asd_policy.envs.tasks import TASKS
from asd_policy.envs.world import RobosuiteEnv


@pytest.fixture(scope="session")
def lift() -> Iterator[RobosuiteEnv]:
    env = RobosuiteEnv("lift")
    yield env
    env.close()


@pytest.fixture(scope="session")
def worlds(lift: RobosuiteEnv) -> Iterator[Callable[[str], RobosuiteEnv]]:
    """One environment of each task, made when first asked for."""
    made = {"lift": lift}

    def world(name: str) -> RobosuiteEnv:
        if name not in made:
            made[name] = RobosuiteEnv(name)
        return made[name]

    yield world
    for name in set(made) - {"lift"}:
        made[name].close()


@pytest.fixture(params=sorted(TASKS))
def world(request, worlds) -> RobosuiteEnv:
    return worlds(request.param)


@pytest.fixture(scope="session")
def flat() -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """An observation as one vector."""
    return lambda observation: np.concatenate(list(observation.values()))


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Path:
    """Three demonstrations of Lift with noise 0.1 and seed 5, made without interruption."""
    path = tmp_path_factory.mktemp("demos") / "lift.zarr"
    collect("lift", 3, 0.1, path, workers=1, seed=5, progress=False)
    return path
