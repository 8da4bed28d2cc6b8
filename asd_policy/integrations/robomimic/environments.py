"""robomimic's robosuite environments on robosuite 1.5: observations and seeds."""

from __future__ import annotations

from typing import Any

import numpy as np

from asd_policy.envs.simulator import compose_observation, read_observables, refuse_copies
from asd_policy.envs.tasks import TASKS, Task


def adapt(env: Any, published_layout: bool, read_anew: bool) -> None:
    """Change one ``EnvRobosuite`` in place (see ``compat.migrate_environments``).

    Args:
        published_layout: give ``object`` in the order of published data, of a task that is known.
        read_anew: read observations anew where robomimic does not.
    """
    tasks = {task.robosuite_name: task for task in TASKS.values()}
    if read_anew or published_layout:
        _read_anew(env, tasks.get(env.name) if published_layout else None)
    _seed_from_numpy(env)
    refuse_copies(env.env)


def _read_anew(env: Any, task: Task | None) -> None:
    original = env.get_observation

    def get_observation(di: Any = None) -> dict[str, np.ndarray]:
        # With cameras, reading twice would render twice: only where it is needed.
        if di is None or not env.env.use_camera_obs or env.env.timestep == 0:
            di = read_observables(env.env)
        made = original(di)
        if task is not None:
            made["object"] = compose_observation(task, di)["object"]
        return made

    env.get_observation = get_observation


def _seed_from_numpy(env: Any) -> None:
    original = env.reset

    def reset(*args: Any, **kwargs: Any) -> Any:
        simulation = env.env
        rng = np.random.default_rng(np.random.randint(2**31))  # noqa: NPY002 - robomimic's seed
        simulation.rng = rng
        placement = getattr(simulation, "placement_initializer", None)
        for sampler in (placement, *getattr(placement, "samplers", {}).values()):
            if sampler is not None:
                sampler.rng = rng
        return original(*args, **kwargs)

    env.reset = reset
