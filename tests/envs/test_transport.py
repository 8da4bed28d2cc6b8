"""The expert for Transport: two arms that meet."""

import dataclasses

import numpy as np
import pytest

from asd_policy.envs.episodes import load_expert, run_episode
from asd_policy.envs.experts.grasp import OPEN
from asd_policy.envs.experts.servo import Gripper, yaw_of
from asd_policy.envs.experts.transport import (
    _MOVED,
    _TOGETHER,
    Style,
    TransportExpert,
    leaning,
)


@pytest.fixture
def env(worlds):
    return worlds("transport")


def expert_of(env, seed):
    env.reset(seed=seed)
    return TransportExpert(env.simulation, np.random.default_rng(seed))


def test_a_hand_leans_away_from_its_robot():
    """Robot 0 is at -y, its resting hand at heading pi; robot 1 at +y, with heading 0."""
    for yaw, side in [(np.pi, -1.0), (0.0, 1.0)]:
        rotation = leaning(yaw, 0.3)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        pointing = [0.0, side * np.sin(0.3), -np.cos(0.3)]  # the fingers, towards the robot
        np.testing.assert_allclose(rotation[:, 2], pointing, atol=1e-12)
        assert rotation[2, 0] == 0  # the fingers stay level
        assert np.cos(yaw_of(rotation) - yaw) == pytest.approx(1)


def test_each_arm_grasps_its_own_end_of_the_hammer(env):
    expert = expert_of(env, 0)
    middle = np.array([0.0, 0.0, 1.0])
    for turned in (-2.6, -0.5, 0.3, 2.9):  # of the handle, from y
        c, s = np.cos(turned), np.sin(turned)
        handle = np.array([[c, 0.0, -s], [s, 0.0, c], [0.0, 1.0, 0.0]])  # its axis is z
        ends = [expert._end((middle, handle), arm) for arm in (0, 1)]
        assert ends[0].position[1] < 0 < ends[1].position[1]
        for arm, end in enumerate(ends):
            assert np.linalg.norm(end.position - middle) == pytest.approx(expert.style.ends[arm])
            fingers = [np.cos(end.yaw), np.sin(end.yaw)]
            assert np.dot(fingers, handle[:2, 2]) == pytest.approx(0, abs=1e-9)
            assert abs(end.yaw - expert._yaw[arm]) < 1.6  # without crossing its forearm


def test_ways_go_up_along_the_middle_of_a_bin_and_then_across(env):
    expert = expert_of(env, 0)
    start = expert._pose("start_bin")[0]
    hand = Gripper.of(env.simulation, 0)
    place = np.array([-0.2, -0.45, 0.9])

    def step(thing):
        return expert._way(0, hand, np.array(thing), place, below=0.02) - hand.position

    deep = step([*(start[:2] + 0.05), 0.85])
    np.testing.assert_allclose(deep[:2], [-0.05, -0.05], atol=1e-9)
    assert deep[2] == pytest.approx(0.06)
    above = step([*start[:2], 1.0])
    assert np.linalg.norm(above[:2]) == pytest.approx(np.linalg.norm(start[:2] - place[:2]))
    np.testing.assert_allclose(step([-0.2, -0.45, 0.95]), [0, 0, -0.05], atol=1e-9)


def test_styles_differ():
    rng = np.random.default_rng(0)
    styles = [dataclasses.asdict(Style.draw(rng)) for _ in range(50)]
    assert all(len({style[key] for style in styles}) == 50 for key in styles[0])


def test_the_hammer_goes_from_hand_to_hand(env):
    """And at any moment a new expert of the same style does the same, as in the other tasks."""
    expert = expert_of(env, 2)
    heights, both, left = [], 0, None
    for step in range(450):
        action = expert.act()
        assert np.abs(action).max() <= 1
        if step % 40 == 0:
            fresh = load_expert(env.task)(env.simulation, np.random.default_rng(3))
            fresh.style, fresh._yaw = expert.style, expert._yaw  # those of the resting hands
            assert np.array_equal(fresh.act(), action)
        scene = expert._look()
        both += scene.offered and scene.taken
        if left is None and scene.taken and action[6] == OPEN:
            left = scene.middle[1]
        if abs(scene.hammer[0][1]) < 0.25:  # between the tables
            heights.append(scene.hammer[0][2])
        if env.step(action)[2]:
            break
    assert env._info()["is_success"]
    assert both > 8  # a policy that acts for so long unseen sees by then whether arm 1 holds it
    assert left is not None
    assert _MOVED < left < _TOGETHER
    assert min(heights) > 0.9


def test_trash_that_was_dropped_is_picked_up_again(env):
    expert = expert_of(env, 1)

    def raised():
        return expert._pose("trash")[0][2] > 0.88

    while not raised():
        env.step(expert.act())
    for _ in range(10):  # let go
        action = expert.act()
        env.step(np.concatenate([action[:7], [0, 0, 0.1, 0, 0, 0, -1.0]]))
    assert not raised()
    for _ in range(250):
        if expert._within("trash_bin", expert._pose("trash")[0], 0.15, 0.05):
            return
        env.step(expert.act())
    pytest.fail("not in time")


@pytest.mark.slow
def test_the_expert_solves_its_task_while_being_pushed(env):
    """`asd-policy demos --task transport --episodes 100` counts over more."""
    assert [run_episode(env, 0.1, seed=0, index=i).success for i in range(3)] == [True] * 3
