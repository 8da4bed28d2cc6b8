"""Registers the tasks with gymnasium. Robosuite is only imported with the first environment."""

from __future__ import annotations

import gymnasium as gym

from asd_policy.envs.tasks import TASKS


def register_envs() -> None:
    """Make every task known to `gym.make`; calling it again changes nothing."""
    for task in TASKS.values():
        if task.env_id not in gym.registry:
            # No max_episode_steps: the environment truncates at its own horizon, which
            # gym.make(..., horizon=...) sets.
            gym.register(
                task.env_id,
                entry_point="asd_policy.envs.world:RobosuiteEnv",
                kwargs={"task": task.name},
            )
