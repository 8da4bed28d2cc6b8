"""The Tool Hang expert: its geometry against the simulator's, its phases, and whole episodes."""

import dataclasses

import mujoco
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from asd_policy.envs.episodes import load_expert, run_episode
from asd_policy.envs.experts import tool_hang
from asd_policy.envs.experts.grasp import OPEN
from asd_policy.envs.experts.servo import Gripper
from asd_policy.envs.experts.tool_hang import _MOUTH, Pose, Style, ToolHangExpert


def expert_of(env, seed):
    env.reset(seed=seed)
    return ToolHangExpert(env.simulation, np.random.default_rng(seed))


def place(env, name, pose):
    """Put an object somewhere, without a step of physics."""
    quaternion = Rotation.from_matrix(pose.rotation).as_quat()[[3, 0, 1, 2]]
    joint = getattr(env.simulation, name).joints[0]
    env.simulation.sim.data.set_joint_qpos(joint, np.concatenate([pose.position, quaternion]))
    mujoco.mj_forward(env.simulation.sim.model._model, env.simulation.sim.data._data)


def standing(expert):
    """The pose of a frame that stands in the stand, all the way down."""
    rotation = Rotation.from_euler("z", np.pi).as_matrix()
    foot = expert._pose("stand").at(_MOUTH) - [0, 0, 0.15]
    return Pose(foot - rotation @ tool_hang._TIP, rotation)


def hung(expert, frame, way):
    """The pose of the tool at a row of the ring's way."""
    axes = tool_hang._hook_axes(frame)
    rotation = tool_hang._hanging(axes, way[3], expert._pose("tool"))
    ring = frame.at(tool_hang._CORNER) + axes.T @ way[:3]
    return Pose(ring - rotation @ tool_hang._RING, rotation)


def contacts(env):
    """Which bodies touch, and how deep they are in each other, metres."""
    data, model = env.simulation.sim.data._data, env.simulation.sim.model._model
    deepest = {}
    for contact in data.contact[: data.ncon]:
        geoms = (model.geom(geom).name for geom in (contact.geom1, contact.geom2))
        names = frozenset(name.split("_")[0] for name in geoms)
        deepest[names] = max(deepest.get(names, 0.0), -float(contact.dist))
    return deepest


def touching(env):
    """How deep the tool is in the frame, metres; 0 where they do not touch."""
    return contacts(env).get(frozenset({"tool", "frame"}), 0.0)


# --- geometry -----------------------------------------------------------------------------------


def test_points_are_the_simulators(worlds):
    env = worlds("tool_hang")
    expert, data = expert_of(env, 0), env.simulation.sim.data
    frame, tool, stand = (expert._pose(name) for name in ("frame", "tool", "stand"))
    points = {
        "frame_tip_site": frame.at(tool_hang._TIP),
        "tool_hole1_center": tool.at(tool_hang._RING),
        "frame_hang_site": frame.at(tool_hang._CORNER - [0.00375, 0, 0]),
    }
    for name, point in points.items():
        np.testing.assert_allclose(data.get_site_xpos(name), point, atol=1e-4)
    grip = frame.at(tool_hang._FRAME_GRIP)
    np.testing.assert_allclose(data.get_geom_xpos("frame_grip_frame"), grip, atol=1e-4)
    walls = np.mean([data.get_geom_xpos(f"stand_wall{i}") for i in range(4)], axis=0)
    np.testing.assert_allclose(walls + [0, 0, 0.075], stand.at(_MOUTH), atol=1e-4)


def test_a_frame_in_the_stand_stands(worlds):
    env = worlds("tool_hang")
    expert = expert_of(env, 0)
    assert not expert._stands(expert._pose("frame"))
    place(env, "frame", standing(expert))
    assert expert._stands(expert._pose("frame"))
    assert env.simulation._check_frame_assembled()


def test_the_rings_way_is_free(worlds):
    """And the straight one is not: the hook is taller than the ring is wide."""
    env = worlds("tool_hang")
    expert = expert_of(env, 0)
    frame = standing(expert)
    place(env, "frame", frame)
    rows = np.arange(len(tool_hang._WAY))
    stops = np.linspace(0, rows[-1], 65)
    way = [np.interp(stops, rows, column) for column in tool_hang._WAY.T]
    for row in np.transpose(way):
        place(env, "tool", hung(expert, frame, row))
        assert touching(env) == 0, row
    straight = []
    for up in np.linspace(0.0, 0.012, 7):
        place(env, "tool", hung(expert, frame, np.array([0.0, 0.0, up, np.pi / 2])))
        straight.append(touching(env))
    assert min(straight) > 0


def test_the_ring_goes_on_along_its_way_and_comes_back_to_it():
    way = tool_hang._WAY
    start, end = tool_hang._ahead(way, way[0]), tool_hang._ahead(way, way[-1])
    np.testing.assert_allclose(start, way[0] - [0, 0, 0.006, 0])
    np.testing.assert_allclose(end, way[-1])
    beside = tool_hang._ahead(way, way[0] + [0.0, 0.02, -0.01, 0.0])
    np.testing.assert_allclose(beside, way[0] - [0, 0, 0.01, 0], atol=1e-9)
    tilts = [tool_hang._ahead(way, row)[3] for row in way]
    assert (np.diff(tilts) >= 0).all()


def test_the_grip_is_met_where_the_hand_is():
    pose, half = Pose(np.array([1.0, 0.0, 0.0]), np.eye(3)), np.array([0.04, 0.0, 0.0])
    for x, met in [(1.03, 1.03), (1.1, 1.04), (0.0, 0.96)]:
        hand = Gripper(np.array([x, 0.01, 0.0]), np.zeros(3), np.eye(3), 0.08, 0.0)
        nearest = tool_hang._nearest(hand, pose, np.zeros(3), half)
        np.testing.assert_allclose(nearest, [met, 0, 0], atol=1e-12)


# --- phases -------------------------------------------------------------------------------------


def test_the_hand_leaves_the_frame_level_and_then_fetches_the_tool(worlds):
    env = worlds("tool_hang")
    expert = expert_of(env, 0)
    frame = standing(expert)
    level = Rotation.from_euler("x", np.pi / 2).as_matrix()  # towards -y
    hand = Gripper(frame.at(tool_hang._FRAME_GRIP), np.zeros(3), level, 0.08, 0.0)
    back = expert._tool_half(hand, frame, expert._pose("tool"))
    np.testing.assert_allclose(back.goal - hand.position, [0, 0.1, 0], atol=1e-12)
    assert back.fingers == OPEN
    away = dataclasses.replace(hand, position=hand.position + [0, 0.12, 0])
    on = expert._tool_half(away, frame, expert._pose("tool"))
    assert on.goal[2] > frame.at(tool_hang._CORNER)[2] + 0.05
    np.testing.assert_allclose(on.turn[:, 2], [0, 0, -1], atol=1e-9)


def test_styles_differ():
    rng = np.random.default_rng(0)
    styles = [dataclasses.asdict(Style.draw(rng)) for _ in range(50)]
    assert all(len({style[key] for style in styles}) == 50 for key in styles[0])
    for bends in np.transpose([style["bends"] for style in styles]):
        assert 10 < (bends < 0).sum() < 40


# --- episodes -----------------------------------------------------------------------------------


def test_the_expert_solves_its_task(worlds):
    """And remembers nothing but its style: a policy that sees the state can imitate it."""
    env = worlds("tool_hang")
    expert = expert_of(env, 2)
    for step in range(450):
        action = expert.act()
        assert np.abs(action).max() <= 1
        if step % 30 == 0:
            fresh = load_expert(env.task)(env.simulation, np.random.default_rng(3))
            assert step > 0 or not np.array_equal(fresh.act(), action)
            fresh.style = expert.style
            assert np.array_equal(fresh.act(), action)
        if env.step(action)[2]:
            break
    assert env._info()["is_success"]
    for _ in range(40):
        env.step(expert.act())
    assert env._info()["is_success"]
    # Straight down, or on the way: the ring's friction lets it sink slowly.
    assert expert._pose("tool").position[2] < expert._pose("tool").at(tool_hang._RING)[2]
    assert {names - {"tool"} for names in contacts(env) if "tool" in names} == {
        frozenset({"frame"})
    }


def test_the_frame_is_slow_around_the_mouth(worlds):
    """A policy executes eight actions of a chunk unseen: in them the tip sinks by 3 cm at most
    where it is about to enter, and by more on either side."""
    env = worlds("tool_hang")
    expert = expert_of(env, 2)
    heights = []
    for _ in range(200):
        tip, mouth = expert._pose("frame").at(tool_hang._TIP), expert._pose("stand").at(_MOUTH)
        beside = np.linalg.norm((tip - mouth)[:2])
        heights.append(tip[2] - mouth[2] if beside < 0.02 else np.nan)
        env.step(expert.act())
        if heights[-1] < -0.1:
            break
    sinking = np.array(heights[:-8]) - heights[8:]
    entering = np.abs(heights[:-8]) < 0.012
    assert entering.sum() > 6
    assert np.nanmax(sinking[entering]) < 0.03
    assert np.nanmax(sinking) > 0.035


def test_the_expert_solves_its_task_while_being_pushed(worlds):
    assert run_episode(worlds("tool_hang"), 0.1, seed=0, index=1).success


@pytest.mark.slow
def test_a_dropped_frame_is_picked_up_again(worlds):
    env = worlds("tool_hang")
    expert = expert_of(env, 1)
    for _ in range(200):
        if expert._pose("frame").position[2] > 0.85:
            break
        env.step(expert.act())
    for _ in range(16):  # let go
        env.step(np.array([0.0, 0.0, 0.1, 0.0, 0.0, 0.0, -1.0]))
    assert expert._pose("frame").position[2] < 0.83
    assert any(env.step(expert.act())[2] for _ in range(500))


@pytest.mark.slow
def test_nearly_all_episodes_succeed(worlds):
    """`asd-policy demos --task tool_hang --episodes 100` counts over more."""
    solved = [run_episode(worlds("tool_hang"), 0.0, seed=0, index=i).success for i in range(8)]
    assert sum(solved) >= 7
