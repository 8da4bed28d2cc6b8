"""`accelerate` on a stand-in of robomimic 0.5's policy: same actions, streams, refusals."""

from __future__ import annotations

import copy
import cProfile
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch

pytest.importorskip("robomimic", reason="needs the extra 'robomimic'")
pytest.importorskip("diffusers")

import asd_policy.integrations.robomimic as asd
from asd_policy import NonFiniteError
from asd_policy.errors import CopyError
from asd_policy.integrations.robomimic.source import encode
from asd_policy.samplers.result import Noise, draw_noise
from reference.robomimic_standin import SHAPES, RolloutPolicy05, algo_config, small_policy
from reference.rounding import assert_same_draws


def observation(seed: int, time: int | None = 2, batch: int | None = None) -> dict[str, np.ndarray]:
    """Keys of Lift, stacked frames by default, and one that no policy wants."""
    rng = np.random.default_rng(seed)
    lead = tuple(n for n in (batch, time) if n is not None)
    made = {k: rng.normal(size=(*lead, *shape)) for k, shape in SHAPES.items()}
    return {**made, "robot0_joint_pos": np.zeros((*lead, 7))}


def quiet(policy: RolloutPolicy05, sampler: str = "asd", **options) -> asd.AcceleratedPolicy:
    return asd.accelerate(policy, sampler, verbose=False, **options)


def same_noise(monkeypatch, policy: asd.AcceleratedPolicy, seed: int) -> None:
    """Make robomimic's loop draw the numbers that our stream of this seed draws."""
    shape = 1, *policy.chunks.shape
    like = policy.chunks.engine.like
    noise: Noise = draw_noise(
        [torch.Generator().manual_seed(seed)], policy.chunks.schedule.num_steps, like
    )
    queue = iter([noise.initial, *noise.steps[0]])  # the start first, then diffusers' steps
    monkeypatch.setattr(torch, "randn", lambda *a, **k: next(queue).view(shape))


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_sequential_actions_are_those_of_robomimics_loop(monkeypatch, ema, scaled) -> None:
    """Same weights, noise and observations: slice, queue, statistics and units included."""
    stats = {}
    if scaled:
        rng = np.random.default_rng(1)
        obs = {k: {"offset": rng.normal(size=(1, *s)), "scale": rng.uniform(1, 2, (1, *s))}
               for k, s in SHAPES.items()}  # fmt: skip
        actions = {"actions": {"offset": np.full((1, 7), 0.5), "scale": np.full((1, 7), 3.0)}}
        stats = {"obs": obs, "actions": actions}
    theirs = small_policy(ema=ema, **stats)
    ours = quiet(theirs, "ddpm")
    assert isinstance(ours, type(theirs).__mro__[1])  # robomimic's RolloutPolicy
    theirs.start_episode()
    ours.start_episode(seeds=5)
    with monkeypatch.context() as patch:
        same_noise(patch, ours, 5)
        with torch.no_grad():
            expected = [theirs(observation(t)) for t in range(8)]
    got = [ours(observation(t)) for t in range(8)]
    np.testing.assert_allclose(np.stack(got), np.stack(expected), atol=2e-5)
    assert ours.last_chunks == [None]  # eight actions of one chunk
    ours(observation(8))
    assert ours.last_chunks[0].calls == 20


def test_averages_are_used_and_said(capsys) -> None:
    theirs = small_policy()
    ours = asd.accelerate(theirs, window=4)
    assert "asd on a DDPM of 20 steps, averaged (EMA) weights" in capsys.readouterr().out
    assert "averaged (EMA) weights" in repr(ours)
    assert "no EMA" in quiet(small_policy(ema=False)).description
    cond = torch.zeros(1, 38)
    x, steps = torch.ones(1, 16, 7), torch.tensor([3])
    average = theirs.policy.ema.averaged_model["policy"]["noise_pred_net"]
    network = ours.chunks.engine.network.unet
    film = network.timestep_film[20 - 1 - steps] + network.condition(cond, 1)
    torch.testing.assert_close(network(x, film), average(x, 3, cond), atol=1e-4, rtol=1e-4)


def test_asd_draws_in_fewer_calls_and_without_gradients() -> None:
    ours = quiet(small_policy(config=algo_config(steps=100)), window=8)
    ours.start_episode(seeds=1)
    action = ours(observation(0))
    assert action.shape == (7,)
    assert action.dtype == np.float32
    assert ours.last_chunks[0].calls < 100
    assert not any(p.requires_grad for p in ours.chunks.engine.network.unet.parameters())


def test_each_environment_has_a_queue_and_a_stream_of_its_own() -> None:
    ours = quiet(small_policy(), window=4)
    ours.chunks.calibration.frozen = True
    seeds = [3, 4, 5]
    ours.start_episode(seeds)
    batch = [ours(observation(t, batch=3), batched_ob=True) for t in range(10)]
    for i, seed in enumerate(seeds):
        ours.start_episode(seed)
        for t in range(10):
            row = {k: v[i] for k, v in observation(t, batch=3).items()}
            assert_same_draws(ours(row), batch[t][i])


def test_environments_may_end_and_begin_apart() -> None:
    ours = quiet(small_policy(), window=4)
    ours.chunks.calibration.frozen = True
    ours.start_episode([1, 2])
    whole = observation(0, batch=2)
    first = ours(whole, batched_ob=True)
    ours.reset_env(1, seed=2)
    alone = {k: v[1:] for k, v in whole.items()}
    assert_same_draws(ours(alone, batched_ob=True, indices=[1])[0], first[1])
    with pytest.raises(ValueError, match="one row for each of 2 environments, got 1"):
        ours(alone, batched_ob=True)


def test_streams_follow_pytorchs_seed() -> None:
    """So that `run_trained_agent --seed` repeats a run."""
    ours = quiet(small_policy(), window=4)
    ours.chunks.calibration.frozen = True
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        ours.start_episode()
        made.append(ours(observation(0)))
    np.testing.assert_array_equal(made[0], made[1])
    assert not np.allclose(made[0], made[2])


def test_single_frames_are_stacked_here() -> None:
    ours = quiet(small_policy(), window=4)
    ours.chunks.calibration.frozen = True
    ours.start_episode(3)
    single = [ours(observation(t, time=None)) for t in range(9)]
    ours.start_episode(3)
    frames = [observation(max(t, 0), time=None) for t in range(-1, 9)]
    pairs = [{k: np.stack([a[k], b[k]]) for k in a} for a, b in pairwise(frames)]
    stacked = [ours(pair) for pair in pairs]
    np.testing.assert_array_equal(np.stack(single), np.stack(stacked))


def test_pictures_go_through_the_policys_encoder() -> None:
    theirs = small_policy(shapes={"agentview_image": [3, 8, 8], "object": [4]})
    ours = quiet(theirs, window=4)
    ours.start_episode(0)
    rng = np.random.default_rng(0)
    ob = {
        "agentview_image": rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8),
        "object": rng.normal(size=(2, 4)),
    }
    assert ours(ob).shape == (7,)
    prepared = theirs._prepare_observation({k: v[None] for k, v in ob.items()}, batched_ob=True)
    assert encode(ours.source.encoder, prepared).shape == (1, 16)


def test_goals_are_ignored_and_tensors_are_taken() -> None:
    """As robomimic 0.5 does."""
    ours = quiet(small_policy(), window=4)
    ours.chunks.calibration.frozen = True
    made = []
    for turn in range(2):
        ours.start_episode(1)
        ob = observation(0)
        if turn:
            ob = {k: torch.from_numpy(v).requires_grad_() for k, v in ob.items()}
        made.append(ours(ob, goal=None if turn else ob))
    np.testing.assert_array_equal(made[0], made[1])


def test_a_copy_goes_on_apart() -> None:
    """With networks of its own, in the middle of an episode."""
    ours = quiet(small_policy(), window=4)
    ours.chunks.calibration.frozen = True
    ours.start_episode(1)
    for t in range(3):
        ours(observation(t, time=None))
    other = copy.deepcopy(ours)
    kept = [ours(observation(t, time=None)) for t in range(3, 12)]
    went = [other(observation(t, time=None)) for t in range(3, 12)]
    np.testing.assert_array_equal(kept, went)
    assert other.policy is not ours.policy
    assert other.chunks.engine is not ours.chunks.engine
    with pytest.raises(CopyError, match="load the checkpoint where the policy is wanted"):
        pickle.dumps(ours)


def test_actions_have_the_type_that_statistics_make(monkeypatch) -> None:
    stats = {"actions": {"offset": np.full((1, 7), 0.1), "scale": np.full((1, 7), 3.0)}}
    for theirs, kind in ((small_policy(actions=stats), np.float64), (small_policy(), np.float32)):
        ours = quiet(theirs, window=4)
        theirs.start_episode()
        ours.start_episode(0)
        with torch.no_grad():
            assert theirs(observation(0)).dtype == ours(observation(0)).dtype == kind


@pytest.mark.parametrize(("steps", "said"), [(10, True), (20, False), (40, False)])
def test_a_chain_of_fewer_steps_is_said_to_be_another(steps, said) -> None:
    config = algo_config(steps=20)
    config.ddpm.num_inference_timesteps = steps
    ours = quiet(small_policy(config=config), "ddpm")
    assert ours.chunks.schedule.num_steps == min(steps, 20)
    assert ("diffusers 0.11.1, its pin, goes from t to t-1 of the 20" in ours.description) is said


@pytest.mark.parametrize(("ddim", "said"), [(True, True), (False, False)])
def test_where_an_old_ddim_steps_otherwise_it_is_said(ddim, said) -> None:
    config = algo_config(ddim, steps=20)
    config.ddim.prediction_type = config.ddpm.prediction_type = "sample"
    ours = quiet(small_policy(config=config), "ddim", steps=10)
    assert ("0.11.1, its pin, adds the predicted" in ours.description) is said


# ---- refusals -----------------------------------------------------------------------------------


def test_missing_and_misshapen_observations_are_one_table() -> None:
    ours = quiet(small_policy(), window=4)
    ours.start_episode(0)
    bad = observation(0)
    del bad["object"]
    bad["robot0_eef_pos"] = np.zeros((2, 4))
    with pytest.raises(ValueError, match=r"(?s)object +missing.*robot0_eef_pos +wrong shape"):
        ours(bad)
    bad = observation(0)
    bad["object"][0, 3] = np.nan
    with pytest.raises(NonFiniteError, match="object"):
        ours(bad)
    # One by one they are remembered, and looked at with actions queued, too.
    alone = [{key: value[-1] for key, value in observation(t).items()} for t in range(12)]
    ours(alone[0])
    with pytest.raises(NonFiniteError, match="object"):
        ours(alone[1] | {"object": np.full_like(alone[1]["object"], np.nan)})
    for ob in alone[1:]:
        ours(ob)
    ours.start_episode(0)
    for t in range(8):  # a whole chunk
        ours(observation(t))
    with pytest.raises(ValueError, match=r"stacked and single .* start_episode\(\) first"):
        ours(alone[8])


def test_ddim_checkpoints() -> None:
    theirs = small_policy(config=algo_config(ddim=True, steps=20))
    theirs_or_ours = r"DDIM \(10 steps, eta=0\).*steps=20.*different distribution"
    with pytest.raises(ValueError, match=theirs_or_ours):
        quiet(theirs)
    ours = quiet(theirs, steps=20, window=4)
    assert "DDPM of 20 steps" in ours.description
    assert "configured for DDIM" in ours.description
    assert quiet(theirs, "ddim").chunks.schedule.num_steps == 10
    config = algo_config(ddim=True, steps=20)
    config.ddim.steps_offset, config.ddim.set_alpha_to_one = 1, False
    schedule = quiet(small_policy(config=config), "ddim").chunks.schedule
    assert schedule.timesteps.tolist() == list(range(19, 0, -2))
    assert (schedule.config.set_alpha_to_one, schedule.config.steps_offset) == (False, 1)
    clipped = quiet(theirs, "ddim-clipped").chunks.schedule.config
    assert (clipped.inference_steps, clipped.use_clipped_model_output) == (10, True)
    with pytest.raises(ValueError, match="eta=0 has none"):
        quiet(theirs, steps=10, eta=0.0)


def test_other_algorithms_are_refused() -> None:
    import robomimic.utils.obs_utils as obs_utils
    from robomimic.algo import algo_factory
    from robomimic.config import config_factory

    config = config_factory("bc")
    obs_utils.initialize_obs_utils_with_config(config)
    algo = algo_factory("bc", config, {"object": [4]}, 7, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"'diffusion_policy'.*got a BC of the algorithm 'bc'"):
        asd.accelerate(asd.rollout.RolloutPolicy(algo))
    with pytest.raises(TypeError, match="RolloutPolicy, got a int"):
        asd.accelerate(3)


def test_unknown_robomimic_releases_are_refused(monkeypatch) -> None:
    from asd_policy.errors import IntegrationError
    from asd_policy.integrations.robomimic import compat

    monkeypatch.setattr(compat.importlib.metadata, "version", lambda name: "0.7.1")
    with pytest.raises(IntegrationError, match=r"robomimic 0.3.x, 0.5.x, got 0.7.1"):
        compat.robomimic_version()
    monkeypatch.setattr(compat.importlib.metadata, "version", lambda name: "0.4.0")
    with pytest.raises(IntegrationError, match=r"0\.4\.0 has no diffusion policy: 0\.3\.0 .* 0\.5"):
        compat.robomimic_version()


def test_observations_are_scaled_key_by_key() -> None:
    from asd_policy.integrations.robomimic.observations import ObservationScale

    rng = np.random.default_rng(0)
    shapes = {"b": (3,), "picture": (2, 4, 5), "a": (2,)}
    stats = {
        k: {"mean": rng.normal(size=(1, *shapes[k])), "std": rng.uniform(1, 2, (1, *shapes[k]))}
        for k in ("a", "picture")
    }
    frames = {k: rng.normal(size=(4, 2, *shape)) for k, shape in shapes.items()}
    frames["b"] = rng.integers(9, size=(4, 2, 3))
    made = ObservationScale(shapes, stats).apply(frames, torch.device("cpu"))
    assert made.keys() == shapes.keys()
    for key, value in made.items():
        found = stats.get(key, {"mean": np.zeros(1), "std": np.ones(1)})
        expected = (frames[key] - found["mean"]) / found["std"]
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-5, atol=1e-6)
        assert value.dtype == torch.float32


def test_six_numbers_of_a_rotation_become_a_command(monkeypatch) -> None:
    """Columns before, between and behind the rotations stay where they are."""
    import robomimic.utils.torch_utils as torch_utils

    from asd_policy.integrations.robomimic import actions

    monkeypatch.setattr(
        torch_utils, "rot_6d_to_axis_angle", lambda rot_6d: rot_6d[:, 3:], raising=False
    )
    whole = torch.arange(2 * 17.0).view(2, 17)
    scale = actions.ActionScale(
        torch.ones(17),
        torch.full((17,), 2.0),
        ((slice(3, 9), "rot_axis_angle"), (slice(10, 16), "rot_axis_angle")),
    )
    kept = [0, 1, 2, 6, 7, 8, 9, 13, 14, 15, 16]
    torch.testing.assert_close(scale.unnormalize(whole), 2 * whole[:, kept] + 1)


def test_the_wrapper_does_little() -> None:
    """Functions called in a chunk's eight control steps beside sampler and encoder: counted, since
    times depend on the machine; the command `overhead` measures those."""
    stats = {k: {"mean": np.zeros((1, *s)), "std": np.ones((1, *s))} for k, s in SHAPES.items()}
    theirs = small_policy()
    ours = quiet(asd.rollout.RolloutPolicy(theirs.policy, obs_normalization_stats=stats), window=4)
    ours.start_episode(0)
    obs = [observation(t) for t in range(8)]
    noise = ours.chunks.noise([torch.Generator().manual_seed(0)])
    drawn = ours.chunks.draw(noise, torch.zeros(1, 38))
    ours.chunks.draw = lambda *arguments: drawn
    ours.source.encode = lambda frames: torch.zeros(1, 38)
    profile = cProfile.Profile()
    ours(obs[0])  # the rest of this chunk, then ten whole ones
    for ob in obs[1:]:
        ours(ob)
    profile.enable()
    for _ in range(10):
        for ob in obs:
            ours(ob)
    profile.disable()
    calls = sum(entry.callcount for entry in profile.getstats()) / 10
    assert calls < 400, calls  # 293 with Python 3.12, 321 with 3.11


def test_the_overhead_is_split_and_the_policy_left_as_it_was() -> None:
    from asd_policy.integrations.robomimic.overhead import measure

    ours = quiet(small_policy(config=algo_config(steps=4)), window=4)
    draw = ours.chunks.draw
    costs = measure(ours, [observation(t) for t in range(8)], chunks=3)
    assert costs.shape == (3, 3)
    assert (costs > 0).all()
    assert ours.chunks.draw == draw
    assert ours(observation(0)).shape == (7,)


def test_a_seed_gives_the_same_actions_whatever_was_drawn_before() -> None:
    """Drafts have learned, and windows are chosen, when the policy is accelerated."""
    fresh, used = quiet(small_policy()), quiet(small_policy())
    for seed in range(3):
        used.start_episode(seeds=10 + seed)
        used(observation(seed))
    for policy in (fresh, used):
        policy.start_episode(seeds=4)
    assert np.array_equal(fresh(observation(0)), used(observation(0)))
    assert fresh.last_chunks[0].window == used.last_chunks[0].window
