"""Which timesteps diffusers visits, for every number of steps, and its loop of a thousand."""

import numpy as np
import pytest
import torch

import asd_policy.integrations.diffusers as asd  # before diffusers: it says why

diffusers = pytest.importorskip("diffusers", minversion="0.21")
pytest.importorskip("diffusers.pipelines.ddpm")

from asd_policy.errors import InputError  # noqa: E402
from asd_policy.integrations.diffusers_chain import (  # noqa: E402
    chain_of,
    check_spacing,
    trained_schedule,
)
from asd_policy.samplers.config import SamplerConfig  # noqa: E402
from asd_policy.schedule import Schedule  # noqa: E402
from reference.pictures import SIDE, its_noise, pipeline  # noqa: E402


@pytest.mark.parametrize(("double", "within"), [(False, 2e-4), (True, 5e-6)])
def test_a_thousand_steps_are_its_loop_but_for_its_tables_precision(double, within):
    made = pipeline(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2")
    if double:
        whole = Schedule.ddpm(1000)
        made.scheduler.alphas_cumprod = whole.alphas_cumprod
        made.scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    theirs = made(1, generator=generator, num_inference_steps=1000, output_type="np").images
    x, _ = asd.draw(
        made.unet, made.scheduler, (1, 3, SIDE, SIDE), sampler="ddpm", noise=its_noise(1, 1000, 3)
    )
    ours = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert float(np.abs(ours - theirs).max()) < within


@pytest.mark.parametrize("steps", [10, 50, 100, 1000])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_timesteps_are_those_of_diffusers_however_many(steps, spacing):
    """All but those for which its formula gives one more, at timestep −1."""
    scheduler = diffusers.DDPMScheduler(steps, timestep_spacing=spacing)
    refused = 0
    for taken in range(1, steps + 1):
        scheduler.set_timesteps(taken)
        ours = {"num_steps": steps, "inference_steps": taken, "timestep_spacing": spacing}
        made, theirs = Schedule.ddpm(**ours), scheduler.timesteps
        assert torch.equal(made.timesteps, theirs[theirs >= 0]), taken
        assert made.num_steps == taken
        if len(theirs) != taken:
            refused += 1
            with pytest.raises(InputError, match=r"spaced 'trailing'.* the last at timestep -1"):
                check_spacing(made, taken)
        else:
            check_spacing(made, taken)
    assert refused == (0 if spacing != "trailing" else {10: 0, 50: 2, 100: 5, 1000: 62}[steps])


def test_a_loop_of_one_step_more_is_not_said_to_be_equalled():
    made = pipeline(num_train_timesteps=100, timestep_spacing="trailing")
    with pytest.raises(InputError, match="29 of 100 steps, spaced 'trailing', are 30 in diffusers"):
        asd.sample(made, 1, torch.Generator(), num_inference_steps=29)
    with pytest.raises(InputError, match="are 30 in diffusers"):
        chain_of(made.scheduler, 29, SamplerConfig("ddpm"))


class OnGpu(torch.Tensor):
    """As a tensor of a GPU's, which NumPy is not given."""

    def __array__(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_a_scheduler_that_has_trained_on_a_gpu():
    """Its add_noise leaves ᾱ there (in training, and where pictures are made between epochs)."""
    scheduler = diffusers.DDPMScheduler(20)
    expected = trained_schedule(scheduler)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.as_subclass(OnGpu)
    assert trained_schedule(scheduler).same_as(expected)
    scheduler.register_to_config(num_train_timesteps=10)
    with pytest.raises(InputError, match="alphas_cumprod of the DDPMScheduler are not those of"):
        trained_schedule(scheduler)
