"""The servo and the Lift expert."""

import dataclasses

import numpy as np
import pytest

from asd_policy.envs.episodes import load_expert
from asd_policy.envs.experts.lift import LiftExpert, Style
from asd_policy.envs.experts.servo import (
    Gripper,
    limited,
    pointing_down,
    position_command,
    rotation_command,
    wrap,
    yaw_of,
)
from asd_policy.envs.tasks import get_task


def gripper(position=(0.0, 0.0, 1.0), velocity=(0.0, 0.0, 0.0), yaw=0.0):
    return Gripper(np.array(position), np.array(velocity), pointing_down(yaw), 0.08, 0.0)


# --- the servo ----------------------------------------------------------------------------------


def test_limiting_keeps_the_direction():
    command = np.array([3.0, -1.0, 0.5])
    np.testing.assert_allclose(limited(command, 0.6), command * 0.2)
    np.testing.assert_array_equal(limited(command / 10, 0.6), command / 10)


def test_a_position_command_points_at_the_target_and_vanishes_there():
    here = gripper()
    far = position_command(here, here.position + [0.3, -0.1, 0.0], speed=0.8)
    np.testing.assert_allclose(far, [0.8, -0.8 / 3, 0.0], atol=1e-12)
    np.testing.assert_array_equal(position_command(here, here.position), 0.0)


def test_a_hand_that_will_arrive_by_itself_is_not_pushed():
    moving = gripper(velocity=(0.2, 0.0, 0.0))
    command = position_command(moving, moving.position + [0.004, 0.0, 0.0])
    assert command[0] < 0


def test_the_servo_closes_the_last_millimetres(lift):
    """A proportional command alone stops 1 mm short and more: joint friction swallows it."""
    lift.reset(seed=0)
    target = Gripper.of(lift.simulation).position + [0.05, 0.03, -0.08]
    for _ in range(30):
        hand = Gripper.of(lift.simulation)
        turn = rotation_command(hand, pointing_down(1.9))
        lift.step(np.concatenate([position_command(hand, target), turn, [-1.0]]))
    hand = Gripper.of(lift.simulation)
    assert np.linalg.norm(hand.position - target) < 1e-3
    assert abs(wrap(yaw_of(hand.rotation) - 1.9, 2 * np.pi)) < 0.03


def test_the_hand_points_down_at_the_yaw_asked_for():
    for yaw in np.linspace(-3, 3, 7):
        rotation = pointing_down(yaw)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1)
        np.testing.assert_array_equal(rotation[:, 2], [0, 0, -1])
        assert yaw_of(rotation) == pytest.approx(yaw)


def test_wrapping():
    assert wrap(np.pi / 2, np.pi / 2) == pytest.approx(0)
    assert wrap(1.5 * np.pi, 2 * np.pi) == pytest.approx(-np.pi / 2)


# --- the expert ---------------------------------------------------------------------------------


def solves(env, seed, noise=0.0, limit=100):
    env.reset(seed=seed)
    expert = LiftExpert(env.simulation, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    for step in range(limit):
        action = expert.act()
        assert np.abs(action).max() <= 1
        action[:6] += noise * rng.standard_normal(6)
        if env.step(action)[2]:
            return step + 1
    return None


def test_the_expert_solves_lift(lift):
    steps = [solves(lift, seed) for seed in range(6)]
    assert None not in steps
    assert max(steps) < 40


def test_the_expert_solves_lift_while_being_pushed(lift):
    assert None not in [solves(lift, seed, noise=0.3) for seed in range(4)]


@pytest.mark.parametrize("steps", [8, 19, 24])
def test_the_expert_remembers_nothing_but_its_style(lift, steps):
    """At any moment a new expert of the same style does the same: a policy that sees the state
    can imitate it."""
    lift.reset(seed=2)
    expert = LiftExpert(lift.simulation, np.random.default_rng(2))
    for _ in range(steps):
        lift.step(expert.act())
    other = LiftExpert(lift.simulation, np.random.default_rng(3))
    assert not np.array_equal(other.act(), expert.act())
    other.style = expert.style
    assert np.array_equal(other.act(), expert.act())


def test_a_dropped_cube_is_picked_up_again(lift):
    lift.reset(seed=1)
    expert = LiftExpert(lift.simulation, np.random.default_rng(1))
    while not lift.step(expert.act())[2]:
        pass
    for _ in range(8):  # let go, and move aside
        lift.step(np.array([0.0, 1.0, 1.0, 0.0, 0.0, 0.0, -1.0]))
    assert not lift.step(expert.act())[2]
    assert any(lift.step(expert.act())[2] for _ in range(60))


def test_styles_differ_and_the_near_grasp_is_the_likely_one():
    rng = np.random.default_rng(0)
    turns = [Style.draw(rng, 0.0).quarter_turns for _ in range(200)]
    assert turns.count(0) > 190
    turns = [Style.draw(rng, -np.pi / 4).quarter_turns for _ in range(200)]
    assert 60 < turns.count(0) < 140
    assert 60 < turns.count(1) < 140
    one, two = (dataclasses.asdict(Style.draw(rng, 0.3)) for _ in range(2))
    assert all(one[key] != two[key] for key in ("speed", "hover", "offset", "rise"))


def test_a_task_without_an_expert_says_so():
    task = dataclasses.replace(get_task("lift"), expert=None)
    with pytest.raises(ValueError, match="task 'lift' has no scripted expert"):
        load_expert(task)
