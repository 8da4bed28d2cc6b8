"""Copies of environments, mid-episode: true ones, or one sentence."""

import copy
import pickle
import types

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from asd_policy.envs.episodes import load_expert
from asd_policy.envs.rendering import choose_backend
from asd_policy.envs.world import RobosuiteEnv
from asd_policy.errors import CopyError, NonFiniteError


def pickled(one):
    return pickle.loads(pickle.dumps(one))


copies = pytest.mark.parametrize("copied", [copy.deepcopy, pickled])


def actions(env, count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, *env.action_space.shape))


def told(env, steps, flat):
    """Everything that the steps tell."""
    moments = [env.step(action) for action in steps]
    return np.array(
        [[*flat(o), reward, end, cut, info["success"]] for o, reward, end, cut, info in moments]
    )


@copies
def test_a_copy_goes_on_bitwise_and_apart(world, flat, copied):
    first, second, third = np.split(actions(world, 36), 3)
    world.reset(seed=3)
    told(world, first, flat)
    other = copied(world)
    kept = told(world, second, flat)
    assert np.array_equal(told(other, second, flat), kept)
    assert np.ptp(kept[:, :-4], axis=0).max() > 0.01, "nothing moved"
    assert np.array_equal(world.flat_state(), other.flat_state())
    # With other actions they part, and neither moves the other.
    third[:, :3], opposite = np.abs(third[:, :3]), -np.abs(third)
    before = world.flat_state()
    apart = told(other, opposite, flat)
    assert np.array_equal(world.flat_state(), before)
    assert np.abs(told(world, third, flat) - apart).max() > 0.01
    # What a copy shows is where its own hand is.
    hand = other.simulation.robots[0].eef_site_id["right"]
    place = other.simulation.sim.data._data.site_xpos[hand]
    np.testing.assert_allclose(apart[-1], told_now(other, flat, len(apart[-1])), atol=1e-6)
    assert np.abs(place - apart[-1][:, None]).min(0).max() < 1e-3
    # The streams go on alike.
    assert np.array_equal(flat(world.reset()[0]), flat(other.reset()[0]))
    other.close()


def told_now(env, flat, width):
    """The last moment, observed anew."""
    now = np.zeros(width)
    observation = flat(env.set_state(env.get_state())[0])
    now[: len(observation)] = observation
    return now


@copies
def test_a_made_environment_and_its_wrappers_are_copied(flat, copied):
    env = gym.make("asd_policy:asd_policy/Lift-v0", horizon=9)
    env.reset(seed=5)
    steps = actions(env, 9)
    told(env, steps[:4], flat)
    other = copied(env)
    assert other.spec == env.spec
    kept = told(env, steps[4:], flat)
    assert np.array_equal(told(other, steps[4:], flat), kept)
    assert kept[-1, -2] == 1, "the copy's horizon is counted on"
    env.close()
    other.close()


def test_a_copied_vector_environment():
    vector = gym.vector.SyncVectorEnv([lambda: RobosuiteEnv("lift")])
    vector.reset(seed=[2])
    step, other_step = actions(vector, 2).astype(np.float32)
    vector.step(step)
    other = copy.deepcopy(vector)
    kept, went = vector.step(other_step)[0], other.step(other_step)[0]
    assert all(np.array_equal(kept[key], went[key]) for key in kept)
    vector.close()
    other.close()


@copies
def test_a_copy_before_the_first_step(world, flat, copied):
    """The controllers then go on from what they took in within the reset."""
    world.reset(seed=6)
    start, steps = world.get_state(), actions(world, 8)
    other = copied(world)
    kept = told(world, steps, flat)
    assert np.array_equal(told(other, steps, flat), kept)
    world.set_state(start)
    assert np.array_equal(told(world, steps, flat), kept)
    other.close()


@copies
def test_a_changed_model_goes_along(lift, flat, copied):
    lift.reset(seed=1)
    model = lift.simulation.sim.model._model
    model.opt.gravity[2] = -3.0
    model.opt.noslip_iterations = 2
    model.geom_friction[:, 0] *= 0.5
    start, other = lift.get_state(), copied(lift)
    steps = actions(lift, 15)
    kept = told(lift, steps, flat)
    assert np.array_equal(told(other, steps, flat), kept)
    assert other.simulation.sim.model._model.opt.noslip_iterations == 2
    other.set_state(start)
    assert np.array_equal(told(other, steps, flat), kept)
    lift.reset(seed=1)
    assert not np.array_equal(told(lift, steps, flat), kept), "the change makes no difference"
    assert lift.simulation.sim.model._model.opt.gravity[2] == -9.81
    other.close()


@copies
def test_before_a_reset_and_after_closing_a_copy_must_be_reset(flat, copied):
    env = RobosuiteEnv("lift")
    for _ in range(2):
        other = copied(env)
        with pytest.raises(ResetNeeded):
            other.step(np.zeros(7))
        assert np.array_equal(flat(env.reset(seed=4)[0]), flat(other.reset(seed=4)[0]))
        other.close()
        env.close()
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(7))


def test_a_diverged_simulation_is_not_copied(lift):
    lift.reset(seed=0)
    warned = lift.simulation.sim.data._data.warning
    warned[int(mujoco.mjtWarning.mjWARN_BADQACC)].number = 1
    with pytest.raises(NonFiniteError, match="accelerations in the simulation, which diverged"):
        copy.deepcopy(lift)
    lift.reset(seed=0)
    copy.deepcopy(lift).close()


def test_robosuites_own_environment_and_what_holds_it_are_refused(lift):
    lift.reset(seed=0)
    expert = load_expert(lift.task)(lift.simulation, np.random.default_rng(0))
    for held in (lift.simulation, expert, types.SimpleNamespace(env=lift, sim=lift.simulation)):
        with pytest.raises(CopyError, match=r"get_state\(\) and set_state\(\)"):
            copy.deepcopy(held)


@copies
def test_pictures_are_those_of_the_copy(copied):
    from asd_policy.envs.cameras import CameraObservations

    try:
        choose_backend()
    except gym.error.DependencyNotInstalled as error:
        pytest.skip(str(error))
    env = CameraObservations(
        RobosuiteEnv("lift", render_mode="rgb_array", render_size=(64, 64)),
        {"agentview_image": (48, 48)},
    )
    env.reset(seed=3)
    env.render()
    other = copied(env)
    down = np.array([0, 0, -1, 0, 0, 0, -1.0])
    pictures = [(one.step(down)[0]["agentview_image"], one.render()) for one in (env, other)]
    assert np.array_equal(pictures[0][0], pictures[1][0])
    assert np.array_equal(pictures[0][1], pictures[1][1])
    for _ in range(10):
        moved = other.step(down)[0]["agentview_image"]
    assert not np.array_equal(moved, pictures[1][0])
    assert np.array_equal(env.render(), pictures[0][1])
    env.close()
    other.close()
