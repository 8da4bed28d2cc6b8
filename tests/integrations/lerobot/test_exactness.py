"""LeRobot's diffusion policies, accelerated: their own loop on the same noise, option by option."""

from __future__ import annotations

import pytest

pytest.importorskip("lerobot", reason="needs LeRobot, in an environment of its own")
import torch
from scipy import stats

import asd_policy.integrations.lerobot as asd
from asd_policy.networks.prepare import PreparedUnet1D
from reference.lerobot_policies import encoded, precise, trained

ROUNDING = 2e-5
OPTIONS = [
    {},
    {"prediction_type": "sample"},
    {"beta_schedule": "linear"},
    {"beta_schedule": "scaled_linear", "beta_end": 0.05},
    {"beta_schedule": "sigmoid", "beta_end": 0.1},
    {"clip_sample": False},
    {"clip_sample": False, "prediction_type": "sample"},
    {"clip_sample_range": 0.4},
    {"clip_sample_range": 2.5},
    {"num_train_timesteps": 50},
    {"num_inference_steps": 20},
    {"num_inference_steps": 30},  # of 100: not every third of them
    {"use_film_scale_modulation": False},
    {"n_groups": 4, "kernel_size": 3},
    {"down_dims": (16, 16, 32)},
    {"n_obs_steps": 1},
]


def difference(policy) -> tuple[float, float]:
    """From LeRobot's loop; and the largest number in its chunks, at least 1."""
    worst, largest = policy.diffusion.conditional_sample.difference(3, encoded(policy))
    return worst, max(1.0, largest)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ",".join(map(str, o.values())))
def test_sequential_ddpm_is_lerobots_loop(options, record_property) -> None:
    policy = asd.accelerate(trained(**options), window=8, verbose=False)
    worst, largest = difference(policy)
    record_property("difference", worst)
    assert worst < 1e-4 * largest
    precise(policy)
    worst, largest = difference(policy)
    assert worst < 2e-5 * largest, "what remains is not that diffusers' tables are float32"
    steps = policy.diffusion.num_inference_steps
    chunk = policy.diffusion.conditional_sample(3, encoded(policy))
    made = policy.diffusion.conditional_sample.stats
    assert chunk.shape == (3, 16, 2)
    assert made.sampler == "asd"
    assert int(made.calls.max()) < steps
    (sampler,) = policy.diffusion.conditional_sample._samplers.values()
    assert isinstance(sampler.engine.source, PreparedUnet1D), "in our inference form"


@pytest.mark.parametrize("cameras", [1, 2])
@pytest.mark.parametrize("apart", [False, True])
def test_pictures(cameras, apart) -> None:
    options = {"use_separate_rgb_encoder_per_camera": apart}
    policy = asd.accelerate(trained(cameras, steps=5, **options), verbose=False, check=True)
    assert asd.difference_to_its_loop(policy, 2, encoded(policy, 2)) < ROUNDING


@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_compiled_networks_and_networks_that_are_not_copied(copied, compiled) -> None:
    policy = trained()
    if compiled:  # what config.compile_model does, but for the backend
        policy.diffusion.unet = torch.compile(policy.diffusion.unet, backend="eager")
    asd.accelerate(policy, copy=copied, window=8, verbose=False)
    assert asd.difference_to_its_loop(policy, 3, encoded(policy)) < ROUNDING
    policy.diffusion.conditional_sample(1, encoded(policy, 1))
    (sampler,) = policy.diffusion.conditional_sample._samplers.values()
    assert isinstance(sampler.engine.source, PreparedUnet1D) == copied


def test_mixed_precision_around_it_changes_nothing() -> None:
    """LeRobot's ``use_amp`` is an autocast around ``select_action``."""
    policy = asd.accelerate(trained(), verbose=False)
    rows, noise = encoded(policy), torch.zeros(3, 16, 2)

    def chunk() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return policy.diffusion.conditional_sample(3, rows, generator, noise)

    expected = chunk()
    with torch.autocast("cpu"):
        assert torch.equal(chunk(), expected)
        half = policy.diffusion.conditional_sample(3, rows.bfloat16())
    assert half.dtype == torch.float32


def test_a_ddim_keeps_its_chain_unless_asked(capsys) -> None:
    policy = trained(noise_scheduler_type="DDIM", num_inference_steps=10)
    asd.accelerate(policy, check=True)
    said = capsys.readouterr().out
    assert "ddim on a DDIM, eta=0, of 10 steps, 10 network calls a chunk" in said
    assert "10 calls in place of 10\n" in said
    assert asd.difference_to_its_loop(policy, 3, encoded(policy)) < ROUNDING
    policy.diffusion.conditional_sample(3, encoded(policy))
    assert policy.diffusion.conditional_sample.stats.calls.tolist() == [10] * 3
    asd.accelerate(policy, "asd", check=True)
    said = capsys.readouterr().out
    assert "asd on a DDPM of 100 steps" in said
    assert "own loop is a DDIM of 10 steps (10 calls), which samples another distribution" in said
    assert "on the DDPM in place of the DDIM" in said
    ddpm = trained()
    ddpm.load_state_dict(policy.state_dict())
    asd.accelerate(ddpm, "asd", verbose=False)
    rows = encoded(policy)
    chunks = [
        each.diffusion.conditional_sample(3, rows, torch.Generator().manual_seed(0))
        for each in (policy, ddpm)
    ]
    assert torch.equal(*chunks), "the DDPM of the same network"


@pytest.mark.statistical
def test_chunks_have_the_distribution_of_its_loop() -> None:
    """At 1e-3; and those of another observation have another (the control)."""
    policy = trained(steps=300)
    rows, control = torch.zeros(2, 600, encoded(policy).shape[1])
    rows[:, :2], rows[:, 5:7] = 0.8, 0.8  # the state, at both times that are seen
    control[:, :2], control[:, 5:7] = -0.8, -0.8
    torch.manual_seed(5)
    with torch.no_grad():
        theirs = policy.diffusion.conditional_sample(600, rows)
        asd.accelerate(policy, "asd", window=8, verbose=False)
        ours = policy.diffusion.conditional_sample(600, rows)
        others = policy.diffusion.conditional_sample(600, control)
    assert int(policy.diffusion.conditional_sample.stats.calls.max()) < 100
    for time, number in ((0, 0), (15, 1)):
        drawn = [x[:, time, number].numpy() for x in (ours, theirs, others)]
        assert stats.ks_2samp(drawn[0], drawn[1]).pvalue > 1e-3
        assert stats.ks_2samp(drawn[2], drawn[1]).pvalue < 1e-4
