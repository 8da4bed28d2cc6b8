"""The phases of a grasp, and the experts for Can and Square."""

import dataclasses

import numpy as np
import pytest

from asd_policy.envs.episodes import load_expert, run_episode
from asd_policy.envs.experts import can, square
from asd_policy.envs.experts.grasp import CLOSE, OPEN, Grasp, bent, let_go, nearest_turn, unwound
from asd_policy.envs.experts.servo import Gripper, pointing_down, yaw_of

TASKS = {"can": can, "square": square}
both = pytest.mark.parametrize("name", TASKS)


# --- phases -------------------------------------------------------------------------------------


def hand(position=(0.0, 0.0, 0.9), yaw=0.0, opening=0.08, closing=0.0):
    return Gripper(np.array(position), np.zeros(3), pointing_down(yaw), opening, closing)


GRASP = Grasp(np.array([0.0, 0.0, 0.9]), 0.0, width=0.05)


def test_a_hand_out_of_line_stays_above_and_comes_down_as_it_lines_up():
    for off, misaligned in [(0.2, 1.0), (0.036, 1.0), (0.021, 0.5), (0.005, 0.0)]:
        goal, turn, fingers = GRASP.approach(hand((off, 0.0, 1.0)), hover=0.08)
        np.testing.assert_allclose(goal, [0.0, 0.0, 0.9 + 0.08 * misaligned], atol=1e-9)
        assert fingers == OPEN
        np.testing.assert_array_equal(turn, pointing_down(0.0))
    assert GRASP.misalignment(hand(yaw=0.3)) == pytest.approx(0.5)
    assert GRASP.misalignment(hand(yaw=2 * np.pi)) == 0.0
    assert dataclasses.replace(GRASP, slack_yaw=np.pi).misalignment(hand(yaw=3.0)) == 0.0


def test_fingers_close_where_the_grasp_is_and_stay_closed():
    assert GRASP.approach(hand((0.0, 0.0, 0.91)), 0.08)[2] == CLOSE
    assert GRASP.approach(hand((0.0, 0.0, 0.93)), 0.08)[2] == OPEN
    assert GRASP.approach(hand((0.015, 0.0, 0.915), opening=0.06), 0.08)[2] == CLOSE
    assert GRASP.approach(hand((0.03, 0.0, 0.9), opening=0.06), 0.08)[2] == OPEN


@pytest.mark.parametrize(
    ("state", "resting", "airborne"),
    [
        ({"opening": 0.05}, True, True),
        ({"opening": 0.05, "closing": 0.03}, False, True),  # still closing, or shaken
        ({"opening": 0.05, "closing": -0.03}, False, True),  # let go of, or shaken
        ({"opening": 0.08}, False, False),
        ({"opening": 0.02}, False, True),  # closed on nothing; tilted in the air
        ({"opening": 0.05, "position": (0.05, 0.0, 0.9)}, False, False),
    ],
)
def test_an_object_is_held_by_fingers_that_rest_on_it(state, resting, airborne):
    assert GRASP.held(hand(**state), airborne=False) is resting
    assert GRASP.held(hand(**state), airborne=True) is airborne


def test_an_object_turned_in_the_fingers_is_let_go_and_grasped_anew():
    grasp = dataclasses.replace(GRASP, askew=0.3)
    resting = {"opening": 0.05}
    assert grasp.held(hand(yaw=0.25, **resting), airborne=False)
    turned = hand(yaw=0.35, **resting)
    assert not grasp.held(turned, airborne=False)
    goal, turn, fingers = grasp.approach(turned, hover=0.08)
    assert fingers == OPEN
    assert goal[2] > 0.93
    np.testing.assert_array_equal(turn, pointing_down(0.0))
    assert GRASP.held(turned, airborne=False)  # where no limit is set
    assert grasp.held(turned, airborne=True)  # there it would fall


def test_the_nearest_turn():
    assert nearest_turn(3.0, np.pi, 0.0) == pytest.approx(3.0 - np.pi)
    assert nearest_turn(0.1, np.pi / 2, 1.5) == pytest.approx(0.1 + np.pi / 2)


def test_the_hand_turns_back_the_way_it_came():
    """From +2.5 to -1.5 the short way round would be upwards, into the joint's stop."""
    headings = [unwound(hand(yaw=yaw), -1.5, middle=0.8) for yaw in (2.5, 1.0, -1.0)]
    np.testing.assert_allclose(headings, [0.5, -1.0, -1.5])
    headings = [unwound(hand(yaw=yaw), 2.5, middle=0.8) for yaw in (-1.5, 2.5 - 2 * np.pi)]
    np.testing.assert_allclose(headings, [0.5, 2.5])


def test_letting_go_waits_for_the_fingers():
    shut, wide = hand(opening=0.05, yaw=0.3), hand(opening=0.07, yaw=0.3)
    for gripper, up in [(shut, 0.0), (wide, 0.1)]:
        goal, turn, fingers = let_go(gripper, free=0.06)
        np.testing.assert_allclose(goal, gripper.position + [0, 0, up])
        np.testing.assert_allclose(turn, gripper.rotation, atol=1e-12)
        assert fingers == OPEN


def test_a_bent_way_is_straight_at_its_end():
    np.testing.assert_allclose(bent(np.array([0.05, 0.0]), 0.5, 0.1, 0.4), [0.05, 0.0])
    np.testing.assert_allclose(bent(np.array([1.0, 0.0]), np.pi / 2, 0.1, 0.4), [0, 1], atol=1e-12)
    place, way = np.array([0.5, 0.0]), [np.zeros(2)]
    while np.linalg.norm(place - way[-1]) > 0.02:
        step = bent(place - way[-1], 0.5, 0.1, 0.4)
        way.append(way[-1] + 0.01 * step / np.linalg.norm(step))
        assert len(way) < 70
    assert 0.04 < max(point[1] for point in way) < 0.15  # to the left


# --- the experts --------------------------------------------------------------------------------


def expert_of(env, seed):
    env.reset(seed=seed)
    return load_expert(env.task)(env.simulation, np.random.default_rng(seed))


def until(env, expert, condition, limit=300):
    """Steps taken until `condition()` holds."""
    for step in range(limit):
        if condition():
            return step
        env.step(expert.act())
    return pytest.fail("not in time")


def height(env, name):
    body = {"can": "Can", "square": "SquareNut"}[name]
    return float(env.simulation.sim.data.body_xpos[env.simulation.obj_body_id[body]][2])


@both
def test_the_expert_solves_its_task(worlds, name):
    for index in range(2):
        episode = run_episode(worlds(name), 0.0, seed=0, index=index)
        assert episode.success
        assert 60 < len(episode) < 180
        assert np.abs(episode.action).max() <= 1


@both
def test_the_expert_solves_its_task_while_being_pushed(worlds, name):
    assert run_episode(worlds(name), 0.1, seed=0, index=1).success


@both
def test_the_expert_remembers_nothing_but_its_style(worlds, name):
    """At any moment a new expert of the same style does the same: a policy that sees the state
    can imitate it."""
    env = worlds(name)
    expert = expert_of(env, 2)
    for step in range(90):
        action = expert.act()
        if step % 15 == 0:
            fresh = load_expert(env.task)(env.simulation, np.random.default_rng(3))
            fresh.style, fresh._yaw = expert.style, expert._yaw  # that of the resting hand
            assert np.array_equal(fresh.act(), action)
        env.step(action)


@both
def test_what_was_dropped_is_picked_up_again(worlds, name):
    env = worlds(name)
    expert = expert_of(env, 1)
    rest = height(env, name) if name == "can" else 0.83
    until(env, expert, lambda: height(env, name) > rest + 0.03)
    for _ in range(16):  # let go
        env.step(np.array([0.0, 0.0, 0.1, 0.0, 0.0, 0.0, -1.0]))
    assert height(env, name) < rest + 0.01
    assert not env._info()["is_success"]
    until(env, expert, lambda: env._info()["is_success"])


@both
def test_styles_differ_within_the_hands_reach(name):
    rng = np.random.default_rng(0)
    styles = [dataclasses.asdict(TASKS[name].Style.draw(rng)) for _ in range(50)]
    assert all(len({style[key] for style in styles}) == 50 for key in styles[0])
    bends = [style["bend"] for style in styles]
    assert min(sum(bend < 0 for bend in bends), sum(bend > 0 for bend in bends)) > 10


def test_a_can_that_has_fallen_over_is_grasped_across(worlds):
    env = worlds("can")
    expert = expert_of(env, 0)
    lying = np.array([[0.0, 0.0, 0.6], [1.0, 0.0, 0.8], [0.0, 1.0, 0.0]])  # its axis is z
    grasp = expert._grasp(np.zeros(3), lying)
    fingers = [np.cos(grasp.yaw), np.sin(grasp.yaw)]
    assert np.dot(fingers, [0.6, 0.8]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("away", "height", "down"),
    [
        ((0.002, 0.001), 0.15, True),  # above the peg, and near enough to go down
        ((0.007, 0.006), 0.15, False),
        ((0.007, 0.006), 0.08, True),  # around it, and askew as far as it can be
        ((0.05, 0.0), 0.08, False),  # beside it
    ],
)
def test_a_nut_is_not_lifted_off_the_peg_that_it_is_around(worlds, away, height, down):
    env = worlds("square")
    expert, gripper = expert_of(env, 0), Gripper.of(env.simulation)
    expert.style = dataclasses.replace(expert.style, peg_yaw=0.0)
    nut = np.array([*(expert._peg - away), expert._table_z + height])
    square_on = np.diag([-1.0, -1.0, 1.0])  # the hand need not turn, and the handle is within reach
    goal, _, _ = expert._carry(gripper, nut, square_on)
    assert (goal[2] < gripper.position[2]) == down


@pytest.mark.parametrize("nut", np.linspace(-3, 3, 7))
@pytest.mark.parametrize("grasped", [np.pi / 2, -np.pi / 2])
def test_the_nut_goes_square_onto_the_peg_with_its_handle_within_reach(worlds, nut, grasped):
    env = worlds("square")
    expert = expert_of(env, 0)
    turned = expert._yaw_at_peg(nut + grasped, nut) - grasped  # the nut's heading at the peg
    assert np.sin(4 * turned) == pytest.approx(0, abs=1e-9)
    assert np.cos(turned) < 0.5
    start = yaw_of(Gripper.of(env.simulation).rotation)
    yaw = expert._yaw_at_peg(nut + grasped, nut)
    assert -1.8 < yaw - start < 3.0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["can", "square"])
def test_nearly_all_episodes_succeed(worlds, name):
    """`asd-policy demos --task NAME --episodes 100` counts over more."""
    solved = [run_episode(worlds(name), 0.0, seed=0, index=i).success for i in range(16)]
    assert sum(solved) >= 15
