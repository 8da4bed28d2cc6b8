"""Receding-horizon control: horizons, history, queues, streams, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from asd_policy import CheckpointError, DiffusionPolicy, NonFiniteError
from asd_policy.errors import InputError
from asd_policy.policy import Checkpoint, PolicyConfig, SamplerConfig, save_checkpoint
from asd_policy.policy.chunks import CHUNKS
from asd_policy.samplers.costs import Costs
from reference.recording_policy import TA, TO, TP, observation, recording
from reference.rounding import assert_same_draws
from reference.tiny import ACTION_DIM, KEYS, tiny_checkpoint, tiny_config


def policy(**options: object) -> DiffusionPolicy:
    made = DiffusionPolicy(tiny_checkpoint(30), SamplerConfig(**{"window": 8, **options}))
    made.calibration.frozen = True
    return made


# ---- horizons -----------------------------------------------------------------------------------


def test_actions_are_rows_of_the_chunk_from_the_current_step_on() -> None:
    """Row To−1 of a chunk belongs to the observation that it was drawn at; Ta rows are executed."""
    made, _ = recording()
    assert made.horizons == (TO, TA, TP)
    assert made.observation_keys == KEYS
    actions = [made.act(observation(t)) for t in range(7)]
    rows = [round(float(a[0]) * 10) for a in actions]
    assert rows == [1, 2, 3, 1, 2, 3, 1]
    # Chunks were drawn at t = 0, 3 and 6, where the latest observation was t (normalized: t/2).
    latest = [float(a[1]) * 10 * 2 for a in actions]
    assert latest == pytest.approx([0, 0, 0, 3, 3, 3, 6], abs=1e-4)
    assert all(a.dtype == np.float32 and a.shape == (ACTION_DIM,) for a in actions)


def test_history_is_padded_with_the_first_observation_and_slides() -> None:
    made, network = recording()
    seen = []
    for t in range(TA + 1):
        network.conditions.clear()
        made.act(observation(10 + t))
        seen.append([c[0].view(TO, -1) for c in network.conditions])
    at = [torch.tensor([10.0, 10.1, 10.2, 10.3, 10.4]) + t for t in range(TA + 1)]
    torch.testing.assert_close(seen[0][0], torch.stack([at[0], at[0]]) / 2)
    assert seen[1] == seen[2] == []
    torch.testing.assert_close(seen[3][0], torch.stack([at[2], at[3]]) / 2)


def test_actions_are_in_data_units() -> None:
    made, _ = recording()
    checkpoint = tiny_checkpoint()
    checkpoint.network = made.network
    checkpoint.action_normalizer.low, checkpoint.action_normalizer.high = (
        torch.tensor([0.0, -4.0]),
        torch.tensor([2.0, 0.0]),
    )
    again = DiffusionPolicy(checkpoint, SamplerConfig("ddpm"))
    ours, scaled = made.act(observation(1.0)), again.act(observation(1.0))
    np.testing.assert_allclose(scaled, ours * [1, 2] + [1, -2], atol=1e-5)


def test_reset_forgets_history_and_queue() -> None:
    made, _ = recording()
    for t in range(2):
        made.act(observation(t))
    made.reset(5)
    assert round(float(made.act(observation(7.0))[0]) * 10) == 1
    made.reset_env(0, seed=1)
    action = made.act(observation(8.0))
    assert round(float(action[0]) * 10) == 1
    assert float(action[1]) * 20 == pytest.approx(8.0, abs=1e-4)


# ---- streams ------------------------------------------------------------------------------------


def roll(made: DiffusionPolicy, seeds: list[int], steps: int = 7) -> np.ndarray:
    """(steps, environments, action) with observations that are the seed's own."""
    made.reset(seeds)
    return np.stack([made.act_batch(observations(seeds, t)) for t in range(steps)])


def observations(seeds: list[int], t: int) -> dict[str, np.ndarray]:
    rows = [np.random.default_rng((seed, t)).uniform(-1, 1, 5) for seed in seeds]
    return {"object": np.stack(rows)[:, :3], "arm": np.stack(rows)[:, 3:]}


@pytest.mark.parametrize(
    "options", [{}, {"name": "ddpm"}, {"draft": "frozen", "calls_per_round": 2}]
)
def test_a_seed_s_actions_do_not_depend_on_its_company(options: dict) -> None:
    made = policy(**options)
    together = roll(made, [3, 1, 4, 15])
    for seeds, columns in (([3], [0]), ([15, 4], [3, 2]), ([1, 4, 3], [1, 2, 0])):
        assert_same_draws(roll(made, seeds), together[:, columns])
    assert not np.allclose(together[:, 0], together[:, 1])


def test_the_same_seed_twice_is_the_same_bitwise() -> None:
    made = policy()
    np.testing.assert_array_equal(roll(made, [3, 1]), roll(made, [3, 1]))
    np.testing.assert_array_equal(roll(made, [3, 1]), roll(policy(), [3, 1]))
    assert not np.array_equal(roll(made, [3, 1]), roll(made, [3, 2]))


def test_without_seeds_every_run_is_another() -> None:
    made = policy()
    made.reset()
    first = made.act(observation(0.0))
    made.reset()
    assert not np.array_equal(made.act(observation(0.0)), first)


def test_environments_may_be_stepped_in_parts_and_out_of_step() -> None:
    """Rows name their environments; one that waits keeps its queue, history and stream."""
    seeds = [3, 1, 4]
    made = policy()
    expected = roll(made, seeds)
    made.reset(seeds)
    clock, taken = [0, 0, 0], [[], [], []]
    for indices in ([2], [0, 1], [1], [2, 0], [1, 2], [0], [2, 1, 0], [0, 1]):
        rows = [observations([seeds[i]], clock[i]) for i in indices]
        batch = {k: np.concatenate([row[k] for row in rows]) for k in KEYS}
        for i, action in zip(indices, made.act_batch(batch, indices), strict=True):
            taken[i].append(action)
            clock[i] += 1
    for i in range(3):
        assert_same_draws(taken[i], expected[: clock[i], i])


def test_restarting_one_environment_leaves_the_others() -> None:
    seeds = [3, 1]
    made = policy()
    expected = roll(made, seeds)
    fresh = roll(made, [9])
    made.reset(seeds)
    for t in range(2):
        made.act_batch(observations(seeds, t))
    made.reset_env(1, seed=9)
    for t in range(2, 7):
        rows = observations([3], t), observations([9], t - 2)
        batch = {k: np.concatenate([row[k] for row in rows]) for k in KEYS}
        actions = made.act_batch(batch)
        assert_same_draws(actions[0], expected[t, 0])
        assert_same_draws(actions[1], fresh[t - 2, 0])


# ---- statistics ---------------------------------------------------------------------------------


def test_last_chunks_tell_what_was_drawn() -> None:
    made = policy()
    made.reset([0, 1, 2])
    made.act_batch(observations([0, 1, 2], 0))
    assert len(made.last_chunks) == 3
    for chunk in made.last_chunks:
        assert chunk is not None
        assert (chunk.sampler, chunk.window, chunk.batch) == ("asd", 8, 3)
        assert 1 <= chunk.calls <= 30
        assert chunk.evaluations >= 30
        assert chunk.accepted.shape == chunk.decided.shape == (30,)
        assert chunk.rejections == chunk.decided.sum() - chunk.accepted.sum()
        parts = chunk.draft_s + chunk.network_s + chunk.verify_s + chunk.other_s
        assert parts == pytest.approx(chunk.latency_s)
        assert min(chunk.draft_s, chunk.network_s, chunk.verify_s, chunk.other_s) > 0
    made.reset_env(1, seed=5)
    made.act_batch(observations([0, 1, 2], 1))
    assert [chunk is None for chunk in made.last_chunks] == [True, False, True]
    assert made.last_chunks[1] is not None
    assert made.last_chunks[1].batch == 1
    made.act_batch(observations([2], 2), indices=[2])
    assert made.last_chunks == [None]


# ---- calibration --------------------------------------------------------------------------------


def calibrated() -> Checkpoint:
    checkpoint = tiny_checkpoint()
    checkpoint.card["calibration"] = {
        "chunks": 3,
        "slope_cross": [0.5] * 10,
        "slope_square": [1.0] * 10,
        "accepted": [9] * 9 + [0],
        "decided": [10] * 9 + [0],
    }
    return checkpoint


def test_the_checkpoint_s_calibration_is_used_and_not_changed() -> None:
    """So that an episode depends on its seed alone, not on those played before it."""
    made = DiffusionPolicy(calibrated(), SamplerConfig(window=4))
    stored = made.calibration.to_dict()
    assert stored == calibrated().card["calibration"]
    first = roll(made, [3, 1])
    assert made.calibration.to_dict() == stored
    np.testing.assert_array_equal(roll(made, [3, 1]), first)


@pytest.mark.parametrize("options", [{"draft": "slope"}, {"calls_per_round": 2}, {"steps": 5}])
def test_another_sampler_learns_beforehand_and_not_in_the_loop(options: dict) -> None:
    """Slopes and acceptance are those of one sampler and one number of steps; an episode depends on
    its seed alone all the same."""
    made = DiffusionPolicy(calibrated(), SamplerConfig(window=4, **options))
    known = made.calibration.to_dict()
    assert known["chunks"] == CHUNKS
    first = roll(made, [3, 1])
    assert made.calibration.to_dict() == known
    roll(made, [8, 9])
    np.testing.assert_array_equal(roll(made, [3, 1]), first)
    again = DiffusionPolicy(calibrated(), SamplerConfig(window=4, **options))
    np.testing.assert_array_equal(roll(again, [3, 1]), first)


def test_what_is_learned_beforehand_does_not_depend_on_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor is it lost where "auto" is sequential."""
    known = []
    for costs in (Costs((1, 64), (1.0, 1.0)), Costs((1, 64), (1.0, 64.0))):
        monkeypatch.setattr("asd_policy.sampler.network_costs", lambda *_, costs=costs: costs)
        made = DiffusionPolicy(tiny_checkpoint(), SamplerConfig())
        known.append((made.calibration.chunks, made.calibration.to_dict()))
    assert known[0] == known[1]
    assert known[0][0] == CHUNKS
    assert made.window == 1


@pytest.mark.parametrize("options", [{}, {"draft": "slope"}, {"eta": 0.5}])
def test_all_steps_of_the_chain_are_asked_for_or_left_out(options: dict) -> None:
    """Then what is stored for the chain is used, or learned, in the same way."""
    plain, spelt = (
        DiffusionPolicy(calibrated(), SamplerConfig(steps=steps, **options)) for steps in (None, 10)
    )
    assert spelt.calibration.to_dict() == plain.calibration.to_dict()
    assert (plain.calibration.to_dict() == calibrated().card["calibration"]) is (not options)
    np.testing.assert_array_equal(roll(spelt, [3, 1]), roll(plain, [3, 1]))


def test_the_automatic_window_is_that_of_all_robots_together() -> None:
    """Not of those that need a chunk now: a robot's actions would depend on the others'."""
    made = DiffusionPolicy(calibrated())
    made.calibration.costs = Costs((1, 64), (1.0, 1.5))  # each robot's rows cost a little
    windows = {}
    for robots in (1, 64):
        made.reset(list(range(robots)))
        windows[robots] = made.window
    assert windows[64] < windows[1]
    for t in range(2 * TA + 1):
        made.act_batch(observations([5], t), [5])
        used = {chunk.window for chunk in made.last_chunks if chunk is not None}
        assert used <= {windows[64]}


# ---- what is refused ----------------------------------------------------------------------------


def test_bad_observations_are_one_table() -> None:
    made = policy()
    wrong = {"object": np.zeros(4), "colour": np.zeros(2)}
    with pytest.raises(ValueError, match="not the observations") as caught:
        made.act(wrong)
    rows = [line.split() for line in str(caught.value).splitlines()[1:]]
    assert ["arm", "missing", "(2,)", "-"] in rows  # as it is given to act, which takes one
    assert ["object", "wrong", "shape", "(3,)", "(4,)"] in rows
    made.reset([0, 1])
    with pytest.raises(ValueError, match=r"object +wrong shape +\(2, 3\) +\(1, 3\)"):
        made.act_batch(observation(0.0, batch=1))


def test_keys_that_the_policy_does_not_use_are_let_by() -> None:
    made = policy()
    made.act(observation(0.0) | {"camera": np.zeros((8, 8))})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_observations_that_are_not_finite_are_refused_before_anything_happens(bad: float) -> None:
    made = policy()
    made.reset(0)
    spoiled = observation(0.0)
    spoiled["arm"][1] = bad
    with pytest.raises(NonFiniteError, match="observation 'arm' holds a NaN or infinite value"):
        made.act(spoiled)
    after = made.act(observation(1.0))
    made.reset(0)
    np.testing.assert_array_equal(after, made.act(observation(1.0)))


def test_a_network_that_is_not_finite_never_reaches_the_robot() -> None:
    checkpoint = tiny_checkpoint()
    checkpoint.network.final_conv[1].bias.data[:] = torch.nan
    made = DiffusionPolicy(checkpoint, SamplerConfig(window=4))
    with pytest.raises(NonFiniteError, match=r"step 0 \(timestep 9\) of chain 0"):
        made.act(observation(0.0))


def test_act_is_for_one_environment() -> None:
    made = policy()
    made.reset([1, 2])
    with pytest.raises(ValueError, match=r"was reset for 2; use act_batch\(\)"):
        made.act(observation(0.0))


def test_observation_spaces_are_compared_in_one_table() -> None:
    made = policy()
    made.check_observation_space(dict(KEYS))
    with pytest.raises(CheckpointError, match="made for other observations") as caught:
        made.check_observation_space({"object": 5, "light": 1})
    problems = {line.split()[0]: line for line in str(caught.value).splitlines()[2:]}
    assert "wrong shape" in problems["object"]
    assert "missing" in problems["arm"]
    assert "unexpected" in problems["light"]


def test_loading_passes_the_sampler_s_options(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "toy", tiny_checkpoint())
    made = DiffusionPolicy.load(folder, draft="memory", window=5, steps=4)
    assert made.sampler == SamplerConfig("asd", "memory", window=5, steps=4)
    assert made.schedule.num_steps == 4
    assert made.card["task"] == "toy"
    made.act(observation(0.0))
    for options, message in (
        ({"sampler": "dpm"}, "sampler must be one of"),
        ({"foo": 1}, "options of DiffusionPolicy.load are sampler, device, .*rejoin; got 'foo'"),
        ({"threds": 1}, "got 'threds'; did you mean 'threads'"),
        ({"threads": -2}, "threads must be a whole number from 1 on, got -2"),
        ({"threads": 0}, "threads must be a whole number from 1 on, got 0"),
        ({"device": "cuda:77"}, "device must be one that torch can use here .*; got 'cuda:77'"),
        ({"device": None}, "device must be one that torch can use here .*; got None"),
        ({"steps": 11}, "between 1 and the 10 training steps, got 11"),
        ({"eta": 0.0}, "nothing to couple"),
    ):
        with pytest.raises(ValueError, match=message):
            DiffusionPolicy.load(folder, **options)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        DiffusionPolicy.load(tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"obs_horizon": 0}, "obs_horizon must be a whole number from 1 on, got 0"),
        ({"action_horizon": 8}, r"must be at most pred_horizon, got \(2, 8, 8\)"),
        ({"pred_horizon": 7}, r"pred_horizon must be a multiple of 2 for 2 resolutions, got 7"),
    ],
)
def test_horizons_that_do_not_fit_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config(**change)


def test_config_round_trip() -> None:
    config = tiny_config(obs_horizon=3, kernel_size=3)
    assert PolicyConfig.from_dict(config.to_dict()) == config
    assert list(PolicyConfig.from_dict(config.to_dict()).observation_keys) == list(KEYS)


def test_queued_counts_the_actions_of_one_environment() -> None:
    policy, _ = recording()
    policy.reset([1, 2])
    assert [policy.queued(i) for i in (0, 1)] == [0, 0]
    policy.act_batch(observation(0.0, 2))
    assert [policy.queued(i) for i in (0, 1)] == [TA - 1, TA - 1]
    policy.reset_env(1, 3)
    assert [policy.queued(i) for i in (0, 1)] == [TA - 1, 0]
    policy.act_batch(observation(0.0, 1), indices=[0])
    assert policy.queued(0) == TA - 2


def test_a_policy_is_made_of_a_checkpoint_and_a_sampler() -> None:
    with pytest.raises(InputError, match=r"checkpoint must be a Checkpoint, .*; got str"):
        DiffusionPolicy("lift")
    with pytest.raises(InputError, match="sampler must be a SamplerConfig, or None; got str"):
        DiffusionPolicy(tiny_checkpoint(), "asd")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_another_type_are_refused(dtype: torch.dtype) -> None:
    made = tiny_checkpoint()
    made.network.to(dtype)
    with pytest.raises(ValueError, match=rf"weights must be float32, got {dtype}.*network\.float"):
        DiffusionPolicy(made)
