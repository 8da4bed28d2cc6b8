"""Lift (and the other rows) as gymnasium environments."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from scipy.spatial.transform import Rotation

import asd_policy  # noqa: F401 - registers the environments
from asd_policy.envs.episodes import FLOOR_HEIGHT, load_expert
from asd_policy.envs.experts.lift import LiftExpert
from asd_policy.envs.registration import register_envs
from asd_policy.envs.simulator import read_observables
from asd_policy.envs.tasks import TASKS, get_task
from asd_policy.envs.world import RobosuiteEnv
from asd_policy.errors import NonFiniteError, Terminated

IDS = [task.env_id for task in TASKS.values()]


def actions(env, count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, *env.action_space.shape))


@pytest.mark.filterwarnings("ignore:.*Box observation space m.* value is:UserWarning")
def test_gymnasium_accepts_every_task(world):
    check_env(world, skip_render_check=True)


def test_made_by_its_id_with_a_horizon():
    env = gym.make("asd_policy:asd_policy/Lift-v0", horizon=2)
    env.reset(seed=0)
    ends = [env.step(np.zeros(7, np.float32))[2:4] for _ in range(2)]
    assert ends == [(False, False), (False, True)]
    env.close()


def test_registering_again_changes_nothing():
    before = {name: gym.registry[name] for name in IDS}
    register_envs()
    assert {name: gym.registry[name] for name in IDS} == before


# --- seeding ------------------------------------------------------------------------------------


def trajectory(env, seed, flat, steps=12):
    observation, _ = env.reset(seed=seed)
    rows = [flat(observation)]
    rows += [flat(env.step(action)[0]) for action in actions(env, steps)]
    return np.array(rows)


def test_a_seed_is_an_episode_bitwise_whatever_came_before(world, flat):
    first = trajectory(world, 3, flat)
    other = trajectory(world, 4, flat)
    assert np.array_equal(trajectory(world, 3, flat), first)
    assert not np.array_equal(other, first)


def test_without_a_seed_the_stream_goes_on(lift, flat):
    streams = []
    for _ in range(2):
        start = flat(lift.reset(seed=8)[0])
        streams.append([start, flat(lift.reset()[0]), flat(lift.reset()[0])])
    assert np.array_equal(streams[0], streams[1])
    assert len(np.unique(streams[0], axis=0)) == 3


def test_spawned_vector_workers_see_the_same_bits(lift, flat):
    vector = gym.make_vec(
        "asd_policy:asd_policy/Lift-v0",
        num_envs=2,
        vectorization_mode="async",
        vector_kwargs={"context": "spawn"},
    )
    vector.reset(seed=[3, 4])
    steps = actions(lift, 2).astype(np.float32)
    rows = [vector.step(np.stack([action, action]))[0] for action in steps]
    vector.close()
    for worker, seed in enumerate((3, 4)):
        lift.reset(seed=seed)
        for action, row in zip(steps, rows, strict=True):
            own = lift.step(action)[0]
            assert all(np.array_equal(row[key][worker], own[key]) for key in own)


# --- observations -------------------------------------------------------------------------------


def body_pose(data, name):
    """Position and quaternion (x, y, z, w), straight from MuJoCo."""
    body = data.body(name)
    return body.xpos, body.xquat[[1, 2, 3, 0]]


def test_lift_observes_in_the_published_order(lift):
    """robosuite 1.4.1: cube position, cube quaternion, hand minus cube."""
    lift.reset(seed=0)
    observation = lift.step(actions(lift, 1)[0])[0]
    data = lift.simulation.sim.data._data
    position, quaternion = body_pose(data, "cube_main")
    hand = data.site("gripper0_right_grip_site").xpos
    _, hand_quaternion = body_pose(data, "robot0_right_hand")
    fingers = [data.joint(f"gripper0_right_finger_joint{i}").qpos[0] for i in (1, 2)]
    assert list(observation) == [
        "object",
        "robot0_eef_pos",
        "robot0_eef_quat",
        "robot0_gripper_qpos",
    ]
    expected = [*position, *quaternion, *(hand - position)]
    np.testing.assert_allclose(observation["object"], expected, atol=1e-6)
    np.testing.assert_allclose(observation["robot0_eef_pos"], hand, atol=1e-6)
    np.testing.assert_allclose(observation["robot0_eef_quat"], hand_quaternion, atol=1e-6)
    np.testing.assert_allclose(observation["robot0_gripper_qpos"], fingers, atol=1e-6)


def test_height_columns_are_heights(world):
    """Of every object that is observed; at first all stand above what counts as the floor."""
    observation, _ = world.reset(seed=1)
    heights = observation["object"][list(world.task.height_columns)]
    objects = {"lift": 1, "can": 1, "square": 1, "tool_hang": 3, "transport": 5}
    assert len(heights) == objects[world.task.name]
    assert (heights > FLOOR_HEIGHT).all()
    assert (heights < 1.1).all()


@pytest.mark.parametrize(
    ("name", "objects"),
    [("can", 1), ("square", 1), ("tool_hang", 3)],
)
@pytest.mark.parametrize("steps", [0, 3])
def test_relative_poses_are_those_of_the_present(worlds, name, objects, steps):
    """World pose, then pose in the hand's frame, of each object: not zeros after a reset, and
    not those of the step before. The pose is computed anew here, by scipy."""
    env = worlds(name)
    observation, _ = env.reset(seed=1)
    for action in actions(env, steps):
        observation = env.step(action)[0]
    hand = observation["robot0_eef_pos"].astype(float)
    turn = Rotation.from_quat(observation["robot0_eef_quat"]).inv()
    for part in observation["object"][: 14 * objects].reshape(objects, 14).astype(float):
        position, quaternion, relative, relative_quaternion = np.split(part, [3, 7, 10])
        np.testing.assert_allclose(relative, turn.apply(position - hand), atol=1e-5)
        expected = turn * Rotation.from_quat(quaternion)
        error = (expected.inv() * Rotation.from_quat(relative_quaternion)).magnitude()
        assert error < 1e-4


def test_transport_observes_in_the_published_order(worlds):
    env = worlds("transport")
    observation, _ = env.reset(seed=1)
    transport = env.simulation.transport
    hands = [observation[f"robot{arm}_eef_pos"] for arm in (0, 1)]
    expected = [
        *transport.payload_pos,
        *transport.payload_quat,
        *transport.trash_pos,
        *transport.trash_quat,
        *transport.lid_handle_pos,
        *transport.lid_handle_quat,
        *transport.target_bin_pos,
        *transport.trash_bin_pos,
        *(transport.payload_pos - hands[0]),
        *(transport.lid_handle_pos - hands[0]),
        *(transport.payload_pos - hands[1]),
        *(transport.trash_pos - hands[1]),
        transport.payload_in_target_bin,
        transport.trash_in_trash_bin,
    ]
    np.testing.assert_allclose(observation["object"], expected, atol=1e-6)


def test_observation_space_is_the_tasks_table(world):
    table = dict(world.task.observation_keys)
    assert {key: space.shape for key, space in world.observation_space.items()} == {
        key: (dim,) for key, dim in table.items()
    }
    assert list(world.reset(seed=0)[0]) == list(table)


# --- the end of an episode ----------------------------------------------------------------------


def test_success_terminates_and_pays(lift):
    lift.reset(seed=0)
    expert = LiftExpert(lift.simulation, np.random.default_rng(0))
    for _ in range(60):
        observation, reward, terminated, truncated, info = lift.step(expert.act())
        assert (reward, terminated) == (float(info["is_success"]), info["success"])
        assert not truncated
        lifted = observation["object"][2] > 0.84  # 4 cm above the table, robosuite's own rule
        assert terminated == lifted
        if terminated:
            return
    pytest.fail("the expert did not lift the cube")


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6,), (1, 7), ()])
def test_an_action_of_the_wrong_shape(lift, shape):
    lift.reset(seed=0)
    with pytest.raises(ValueError, match=r"expected an action of shape \(7,\), got \("):
        lift.step(np.zeros(shape))


@pytest.mark.parametrize("action", [np.zeros(7) + 1j, np.full(7, "1"), np.full(7, None)])
def test_an_action_of_something_else_than_numbers(lift, action):
    lift.reset(seed=0)
    with pytest.raises(ValueError, match="expected an action of numbers, got "):
        lift.step(action)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_non_finite_action_never_reaches_the_world(lift, value):
    lift.reset(seed=0)
    before = lift.flat_state()
    action = np.zeros(7)
    action[3] = value
    with pytest.raises(NonFiniteError, match="expected a finite action, got"):
        lift.step(action)
    assert np.array_equal(lift.flat_state(), before)


def test_a_world_that_diverges_is_not_stepped_on(lift, tmp_path, monkeypatch):
    """MuJoCo itself would go on from a default pose."""
    monkeypatch.chdir(tmp_path)  # where MuJoCo writes its log
    lift.reset(seed=0)
    lift.simulation.sim.data.qpos[-7] = np.nan  # the cube's x
    with pytest.raises(NonFiniteError, match="expected finite positions in the simulation"):
        lift.step(np.zeros(7))
    lift.reset(seed=0)
    lift.step(np.zeros(7))


def test_an_interruption_in_compiled_code_is_one(lift, monkeypatch):
    """numba, which robosuite's controllers are compiled by, makes of it a SystemError, twice."""
    lift.reset(seed=0)

    def wrapped(error):
        try:
            try:
                raise error
            except BaseException as first:
                raise SystemError(
                    "_numba_unpickle returned a result with an exception set"
                ) from first
        except SystemError as second:
            raise SystemError("opspace_matrices returned a result …") from second

    for kind, left in ((KeyboardInterrupt, None), (Terminated, None), (ValueError, SystemError)):
        monkeypatch.setattr(lift.unwrapped.simulation, "step", lambda _, k=kind: wrapped(k()))
        with pytest.raises(left or kind) as caught:
            lift.step(np.zeros(7))
        assert type(caught.value) is (left or kind)


def test_a_non_finite_observation_is_not_returned(lift):
    lift.reset(seed=0)
    raw = read_observables(lift.simulation)
    raw["cube_quat"] = np.array([0.0, np.nan, 0.0, 1.0])
    with pytest.raises(NonFiniteError, match="expected finite observations, got object = "):
        lift._observe(raw)


def test_a_step_before_the_first_reset():
    env = RobosuiteEnv("lift")
    with pytest.raises(ResetNeeded, match=r"expected a reset\(\)"):
        env.step(np.zeros(7))
    env.close()


def test_unknown_names_are_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match="unknown task 'lfit'; expected one of: lift, can, "):
        get_task("lfit")
    with pytest.raises(ValueError, match="unknown task"):
        RobosuiteEnv("lfit")
    with pytest.raises(ValueError, match="expected render_mode None or 'rgb_array', got 'human'"):
        RobosuiteEnv("lift", render_mode="human")
    with pytest.raises(ValueError, match="expected a horizon of at least 1 step, got 0"):
        RobosuiteEnv("lift", horizon=0)


# --- saved states -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "steps"),
    [("lift", 24), ("can", 45), ("square", 45), ("tool_hang", 60), ("transport", 55)],
)
def test_a_state_returns_in_another_environment(worlds, flat, name, steps):
    """Saved with the object grasped: contact forces and gripper commands must return too."""
    env, other = worlds(name), RobosuiteEnv(name)
    env.reset(seed=5)
    expert = load_expert(env.task)(env.simulation, np.random.default_rng(0))
    past = [expert.act() for _ in range(steps) if env.step(expert.act())]
    assert (past[-1][6::7] == 1.0).all()
    state = env.get_state()
    future = actions(env, 10, seed=2)
    expected = [flat(env.step(action)[0]) for action in future]
    other.reset(seed=6)
    other.set_state(state)
    assert np.array_equal([flat(other.step(action)[0]) for action in future], expected)
    env.set_state(state)
    assert np.array_equal([flat(env.step(action)[0]) for action in future], expected)
    other.close()


def test_a_moment_of_another_task_changes_nothing(lift, worlds):
    can = worlds("can")
    lift.reset(seed=1)
    can.reset(seed=0)
    can.step(np.full(7, 0.5))
    before = can.get_state()
    with pytest.raises(ValueError, match=r"a moment of can has physics \(\d+,\); got \(\d+,\)"):
        can.set_state(lift.get_state())
    with pytest.raises(ValueError, match="state must be a WorldState"):
        can.set_state("start")
    after = can.get_state()
    assert (after.episode_seed, after.steps) == (before.episode_seed, before.steps)
    assert np.array_equal(after.physics, before.physics)
    with pytest.raises(ResetNeeded):
        RobosuiteEnv("lift").flat_state()
