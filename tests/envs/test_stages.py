"""Stages of the tasks: those that the experts pass are told, in order, and at no other time."""

import importlib

import numpy as np
import pytest

from asd_policy.envs.stages import STAGES
from asd_policy.envs.tasks import TASKS
from asd_policy.envs.world import RobosuiteEnv

LAST = {"lift": {"lifted"}, "can": {"placed"}, "square": {"let go"}, "tool_hang": {"tool hung"},
        "transport": {"hammer placed", "trash thrown away"}}  # fmt: skip
ORDER = {"transport": [["lid grasped", "hammer grasped", "hammer handed over", "hammer placed"],
                       ["trash grasped", "trash thrown away"]]}  # fmt: skip


def test_every_task_has_stages():
    assert STAGES.keys() == TASKS.keys()


@pytest.mark.parametrize("task", TASKS)
def test_an_expert_passes_every_stage_in_order(task):
    env = RobosuiteEnv(task)
    env.reset(seed=3)
    assert not any(map(env.has_reached, env.stages)), "nothing is done at the start"
    module, _, name = TASKS[task].expert.partition(":")
    expert = getattr(importlib.import_module(module), name)(
        env.simulation, np.random.default_rng(1)
    )
    first: dict[str, int] = {}
    for step in range(TASKS[task].demonstration_limit):
        before = env.simulation.sim.get_state().flatten() if step == 50 else None
        for stage in env.stages:
            if env.has_reached(stage):
                first.setdefault(stage, step)
        if before is not None:  # looking changes nothing
            assert np.array_equal(before, env.simulation.sim.get_state().flatten())
        terminated = env.step(expert.act())[2]
        if terminated:
            break
    assert terminated
    for stage in env.stages:
        if env.has_reached(stage):
            first.setdefault(stage, step + 1)
    for order in ORDER.get(task, [list(env.stages)]):
        steps = [first[stage] for stage in order]
        assert steps == sorted(steps)
        assert steps[0] > 5
    assert max(first[stage] for stage in LAST[task]) == step + 1, "success is the last stage"
    env.close()


def test_a_hand_that_holds_nothing_reaches_nothing():
    env = RobosuiteEnv("lift")
    env.reset(seed=0)
    for _ in range(40):
        env.step(np.array([0, 0, 0.2, 0, 0, 0, 1.0]))
        assert not any(map(env.has_reached, env.stages))
    env.close()
