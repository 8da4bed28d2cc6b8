"""diffusers' pipelines: the same images from the same noise, the same distribution by ASD."""

import functools
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import asd_policy.integrations.diffusers as asd  # before diffusers: it says why

diffusers = pytest.importorskip("diffusers", minversion="0.21")
pytest.importorskip("diffusers.pipelines.ddpm")

from asd_policy.errors import AsdPolicyError, InputError  # noqa: E402
from asd_policy.integrations.diffusers_denoisers import Thresholded, device_of  # noqa: E402
from asd_policy.samplers.acceptance import choose_window  # noqa: E402
from asd_policy.samplers.costs import Costs  # noqa: E402
from asd_policy.samplers.result import Noise  # noqa: E402
from reference.pictures import SIDE, STEPS, its_noise, pipeline, unet  # noqa: E402


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, STEPS),
        ({"prediction_type": "sample"}, STEPS),
        ({"prediction_type": "v_prediction"}, STEPS),
        ({"variance_type": "fixed_large"}, STEPS),
        ({"variance_type": "fixed_small_log"}, STEPS),
        ({"beta_schedule": "squaredcos_cap_v2"}, STEPS),
        ({"clip_sample": False}, STEPS),
        ({"clip_sample_range": 0.5}, STEPS),
        ({"thresholding": True, "sample_max_value": 1.5}, STEPS),
        ({"thresholding": True, "prediction_type": "sample"}, STEPS),
        ({"thresholding": True, "prediction_type": "v_prediction", "sample_max_value": 3.0}, 10),
        ({"timestep_spacing": "trailing"}, 10),
        ({"timestep_spacing": "leading"}, 10),
        ({"timestep_spacing": "linspace"}, 7),
        # Where a step falls between two timesteps, and rounding says which it takes:
        ({"timestep_spacing": "linspace", "num_train_timesteps": 1000, "beta_end": 0.02}, 27),
        ({"timestep_spacing": "trailing", "num_train_timesteps": 1000, "beta_end": 0.02}, 48),
    ],
)
def test_sequential_ddpm_is_the_pipelines_own_loop(options, steps):
    made = pipeline(**options)
    generator = torch.Generator().manual_seed(3)
    theirs = made(
        batch_size=2, generator=generator, num_inference_steps=steps, output_type="np"
    ).images
    x, stats = asd.draw(
        made.unet, made.scheduler, (2, 3, SIDE, SIDE), sampler="ddpm", num_inference_steps=steps,
        noise=its_noise(2, steps, 3),
    )  # fmt: skip
    assert stats.calls.tolist() == [steps, steps]
    assert (
        float(np.abs((x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy() - theirs).max()) < 5e-6
    )


@pytest.mark.parametrize("channels", [1, 6])
@pytest.mark.parametrize("thresholding", [True, False])
def test_a_network_of_other_channels_is_refused(channels, thresholding):
    class Other(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x, t):
            return x.repeat(1, 2, 1, 1)[:, :channels] * self.weight

    scheduler = diffusers.DDPMScheduler(10, thresholding=thresholding)
    with pytest.raises(InputError, match="must return the shape it is given"):
        asd.draw(Other(), scheduler, (1, 3, 4, 4), verbose=False)


def test_thresholding_is_kept_by_asd():
    """The distribution is its chain's: from the same noise ASD's mean is near DDPM's; and what it
    cuts off is not there."""
    made = pipeline(thresholding=True, sample_max_value=1.0)
    draw = functools.partial(asd.draw, made.unet, made.scheduler, (64, 3, SIDE, SIDE))
    generator = torch.Generator().manual_seed(0)
    ours, stats = draw(generator=generator, sampler="asd")
    theirs, _ = draw(generator=generator, sampler="ddpm")
    assert int(stats.calls.max()) < STEPS
    assert float(ours.abs().max()) <= 1 + 1e-6
    error = (ours.var(0) + theirs.var(0)).div(64).sqrt()
    assert float(((ours.mean(0) - theirs.mean(0)) / error).abs().max()) < 5


def test_images_as_the_pipeline_gives_them():
    made = pipeline()
    draw = functools.partial(asd.sample, made, batch_size=2, generator=torch.Generator())
    assert [picture.size for picture in draw().images] == [(SIDE, SIDE)] * 2
    assert draw(output_type="np").images.shape == (2, SIDE, SIDE, 3)
    pictures = draw(output_type="pt")
    assert pictures.images.shape == (2, 3, SIDE, SIDE)
    assert 0 <= float(pictures.images.min()) < float(pictures.images.max()) <= 1
    assert int(pictures.stats.calls.max()) < STEPS, "fewer calls than steps"


@pytest.mark.parametrize("number", [-1, 0, "2", True, 1.5])
def test_batch_size_is_a_whole_number(number):
    with pytest.raises(InputError, match="batch_size must be a whole number from 1 on, got"):
        asd.sample(pipeline(), batch_size=number)


def test_a_seed_gives_the_same_images_and_each_has_a_stream_of_its_own():
    made = pipeline()

    def images(batch: int, *seeds: int):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return asd.sample(made, batch, generators, output_type="pt").images

    both = images(2, 5, 6)
    assert torch.equal(both, images(2, 5, 6))
    torch.testing.assert_close(both[1:], images(1, 6))
    assert not torch.allclose(both[0], both[1])


def test_rows_are_cut_and_nothing_else_changes():
    made, seen = pipeline(), []
    made.unet.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    whole = asd.sample(made, 2, torch.Generator().manual_seed(0), output_type="pt")
    assert max(seen) > 4
    seen.clear()
    cut = asd.sample(made, 2, torch.Generator().manual_seed(0), output_type="pt", rows_at_once=4)
    assert max(seen) == 4
    torch.testing.assert_close(cut.images, whole.images)
    assert cut.stats.calls.tolist() == whole.stats.calls.tolist()


@pytest.mark.parametrize(("exponent", "batch", "least"), [(0.0, 1, 8), (1.0, 1, 1), (0.5, 8, 2)])
def test_the_window_is_the_one_that_takes_the_least_time(monkeypatch, exponent, batch, least):
    """Where each row takes as long as alone, that is none: sequential DDPM."""
    rows = (1, 8, 64, 512)
    costs = Costs(rows, tuple(n**exponent for n in rows))
    monkeypatch.setattr("asd_policy.sampler.network_costs", lambda *given: costs)
    drawn = asd.sample(pipeline(), batch, torch.Generator().manual_seed(0), window="auto")
    assert drawn.stats.window >= least
    if exponent == 1:
        assert drawn.stats.calls.tolist() == [STEPS]


def test_later_calls_go_by_what_earlier_ones_learned(monkeypatch):
    """Of a network whose drafts all hold, the widest window; of another one, nothing is known."""
    costs = Costs((1, 8, 64, 512), (1.0, 1.05, 1.3, 3.0))
    monkeypatch.setattr("asd_policy.sampler.network_costs", lambda *given: costs)

    def window(made, seed, **options):
        drawn = asd.sample(made, 1, torch.Generator().manual_seed(seed), window="auto", **options)
        return drawn.stats.window

    made = pipeline(prediction_type="sample", clip_sample=False)
    torch.nn.init.zeros_(made.unet.conv_out.weight)  # the same picture wherever it is asked
    typical = asd.Acceptance.typical(STEPS)
    assert window(made, 0) == choose_window(typical, costs, 1, STEPS) < STEPS
    assert window(made, 1) == STEPS
    assert window(made, 2, num_inference_steps=10) < 10, "another chain"
    other = pipeline(prediction_type="sample", clip_sample=False)
    assert window(other, 0) < STEPS
    alike = {"generator": torch.Generator().manual_seed(3), "output_type": "pt", "window": 4}
    told = asd.sample(other, 1, **alike).images
    alike["generator"].manual_seed(3)
    fresh = asd.sample(pipeline(prediction_type="sample", clip_sample=False), 1, **alike).images
    assert torch.equal(told, fresh), "images of a fixed window are those of their seed"


def test_too_little_memory_says_what_would_fit(monkeypatch):
    made = pipeline()

    def full(*given, **named):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(made.unet, "forward", full)
    with pytest.raises(AsdPolicyError, match=r"room for .* 8 rows of \(3, 8, 8\).*rows_at_once=4"):
        asd.sample(made, 8, sampler="ddpm")


@pytest.mark.parametrize("argument", ["class_labels", "encoder_hidden_states"])
def test_guidance_is_part_of_the_target(argument):
    """Both halves in one call, equal to two calls; and sampled as any denoiser."""
    if argument == "class_labels":
        network, cond = unet(num_class_embeds=4), torch.tensor([[0, 1], [0, 2]])
    else:
        torch.manual_seed(0)
        network = diffusers.UNet2DConditionModel(
            sample_size=SIDE, in_channels=3, out_channels=3, layers_per_block=1,
            block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=4,
            cross_attention_dim=6, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ).eval()  # fmt: skip
        cond = torch.randn(2, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    guided = asd.Guided(network, 3.0, argument)
    x, t = (
        torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)),
        torch.tensor([3, 9]),
    )
    with torch.no_grad():
        halves = [network(x, t, **{argument: cond[:, half]}).sample for half in (0, 1)]
        torch.testing.assert_close(guided(x, t, cond), halves[0] + 3 * (halves[1] - halves[0]))
    samples, stats = asd.draw(
        guided, pipeline().scheduler, x.shape, cond, generator=torch.Generator().manual_seed(0)
    )
    assert samples.shape == x.shape
    assert int(stats.calls.max()) < STEPS


def test_half_precision_networks_are_given_their_type():
    made = pipeline()
    made.unet.to(torch.bfloat16)
    images = asd.sample(made, 1, torch.Generator().manual_seed(0), output_type="np").images
    assert images.dtype == np.float32


@pytest.mark.parametrize("kept", [torch.float8_e4m3fn, torch.bfloat16])
def test_weights_that_are_kept_smaller_than_they_are_used(kept):
    """By diffusers' layerwise casting, whose first weight does not say what the network takes."""
    made = pipeline()
    if not hasattr(made.unet, "enable_layerwise_casting"):
        pytest.skip("this diffusers has no layerwise casting")
    made.unet.enable_layerwise_casting(storage_dtype=kept, compute_dtype=torch.float32)
    theirs = made(
        batch_size=2, generator=torch.Generator().manual_seed(3), num_inference_steps=STEPS,
        output_type="np",
    ).images  # fmt: skip
    x, _ = asd.draw(
        made.unet, made.scheduler, (2, 3, SIDE, SIDE), sampler="ddpm", noise=its_noise(2, STEPS, 3)
    )
    ours = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert float(np.abs(ours - theirs).max()) < 5e-6
    guided = asd.Guided(made.unet, 1.0)
    assert guided.dtype == made.unet.dtype == torch.float32


def test_weights_that_wait_on_another_device():
    """Until the network is called: hooks say where that is."""
    network = torch.nn.Sequential(torch.nn.Linear(1, 1))
    assert device_of(network) == torch.device("cpu")
    group = SimpleNamespace(group=SimpleNamespace(onload_device=torch.device("cuda", 1)))
    network[0]._diffusers_hook = SimpleNamespace(get_hook={"group_offloading": group}.get)
    assert device_of(network) == torch.device("cuda", 1)
    network._hf_hook = SimpleNamespace(execution_device="cuda:0")
    assert device_of(network) == torch.device("cuda", 0)
    network._hf_hook, network[0]._diffusers_hook = SimpleNamespace(), None
    assert device_of(network) == torch.device("cpu")
    accelerate = pytest.importorskip("accelerate")
    made = pipeline()
    expected = asd.sample(made, generator=torch.Generator().manual_seed(0), output_type="pt").images
    accelerate.cpu_offload(made.unet, execution_device="cpu")
    found = asd.sample(made, generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert torch.equal(found, expected)


def test_mistakes_are_one_sentence():
    made = pipeline()
    ddim = diffusers.DDIMScheduler.from_config(made.scheduler.config)
    learned = diffusers.DDPMScheduler(variance_type="learned_range")
    black = diffusers.DDPMScheduler(rescale_betas_zero_snr=True)
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    by_ddim = diffusers.DDIMPipeline(unet=unet(), scheduler=ddim)
    by_batch = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 3, 1))
    shape = (1, 3, SIDE, SIDE)
    wrapped = SimpleNamespace(
        unet=torch.nn.DataParallel(made.unet), scheduler=made.scheduler, numpy_to_pil=None
    )
    decoder = {"vqvae": diffusers.VQModel(block_out_channels=(8,), norm_num_groups=8)}
    latent = diffusers.LDMPipeline(unet=made.unet, scheduler=made.scheduler, **decoder)
    sizeless = diffusers.DDPMPipeline(unet=unet(sample_size=None), scheduler=made.scheduler)
    for call, message in [
        (lambda: asd.sample(object()), "expected a DDPMPipeline"),
        (lambda: asd.draw(made.unet, made.scheduler, ()), "shape must be (chains, sizes of one"),
        (lambda: asd.draw(made.unet, made.scheduler, 3), "shape must be (chains, sizes of one"),
        (lambda: asd.draw(made.unet, made.scheduler, shape, [1]), "cond must be a tensor with a"),
        (
            lambda: asd.draw(made.unet, made.scheduler, shape, noise=torch.zeros(shape)),
            "noise must be a Noise",
        ),
        (
            lambda: asd.draw(
                made.unet, made.scheduler, shape, noise=its_noise(1, STEPS, 0),
                generator=torch.Generator(),
            ),
            "expected noise, or a seed or generator to draw it from, got both",
        ),
        (lambda: asd.draw(lambda x, t: x, made.scheduler, shape), "expected a denoiser with weigh"),
        (
            lambda: asd.draw(asd.Guided(made.unet, 2.0), made.scheduler, shape),
            "guidance needs a cond of shape (B, 2, …)",
        ),
        (
            lambda: asd.draw(asd.Guided(made.unet, 2.0), made.scheduler, shape, torch.ones(1)),
            "guidance needs a cond of shape (B, 2, …)",
        ),
        (lambda: asd.sample(wrapped), "expected a UNet2DModel, whose config says"),
        (lambda: asd.sample(latent), "expected a DDPMPipeline (a pipeline of a UNet2DModel and a"),
        (lambda: asd.sample(sizeless), "the UNet2DModel's sample_size is None"),
        (lambda: asd.draw(made.unet, ddim, shape), "expected a DDPMScheduler, got a DDIMScheduler"),
        (lambda: asd.sample(by_ddim), "expected a DDPMScheduler, got a DDIMScheduler"),
        (lambda: asd.draw(made.unet, flow, shape), "there is no DDPM that such a network was tra"),
        (lambda: asd.draw(made.unet, black, shape), "rescale_betas_zero_snr of the DDPMScheduler"),
        (lambda: asd.draw(by_batch, made.scheduler, shape), "mixes the rows of a call in training"),
        (lambda: asd.draw(made.unet, learned, shape), "predicts its own variance"),
        (lambda: asd.draw(made.unet.train(), made.scheduler, shape, windo=3), "got 'windo'"),
        (lambda: asd.sample(made, batchsize=3), "'batchsize'; did you mean 'batch_size'?"),
        (lambda: asd.sample(made, output_type="latent"), "output_type must be"),
        (lambda: asd.sample(made, rows_at_once=0), "rows_at_once must be a whole number from 1 on"),
        (lambda: asd.sample(made, num_inference_steps=99), "between 1 and the 20 training steps"),
        (lambda: asd.draw(unet(dropout=0.1).train(), made.scheduler, shape), "call network.eval()"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=re.escape(message)):
            call()


@pytest.mark.parametrize(
    ("sampler", "options"),
    [("ddpm", {}), ("asd", {}), ("ddim", {}), ("ddim-clipped", {}), ("asd-ddim", {"eta": 1.0})],
)
def test_inference_steps_are_those_of_any_sampler(sampler, options):
    made = pipeline()
    given = {"sampler": sampler, **options}
    draw = functools.partial(asd.draw, made.unet, made.scheduler, (1, 3, SIDE, SIDE), **given)
    _, stats = draw(num_inference_steps=12)
    assert stats.decided.shape == (1, 12)
    with pytest.raises(InputError, match="expected one number of steps, got 5 and 12"):
        draw(num_inference_steps=12, steps=5)
    assert draw(num_inference_steps=5, steps=5)[1].decided.shape == (1, 5)


def test_ddim_goes_along_the_network_s_own_noise_or_is_refused():
    """With thresholding its ε is that of what is left, which is ddim-clipped."""
    made = pipeline(thresholding=True, sample_max_value=1.5)
    draw = functools.partial(asd.draw, made.unet, made.scheduler, (2, 3, SIDE, SIDE))
    with pytest.raises(InputError, match="expected sampler='ddim-clipped'"):
        draw(sampler="ddim")
    noise = its_noise(2, 5, 3)
    x, _ = draw(sampler="ddim-clipped", num_inference_steps=5, noise=noise)
    theirs = diffusers.DDIMScheduler.from_config(made.scheduler.config)
    theirs.set_timesteps(5)
    expected = noise.initial.view(2, 3, SIDE, SIDE)
    with torch.no_grad():
        for t in theirs.timesteps:
            said = made.unet(expected, t).sample
            step = theirs.step(said, t, expected, use_clipped_model_output=True)
            expected = step.prev_sample
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)


def test_a_denoiser_without_weights_is_refused():
    with pytest.raises(InputError, match="expected a denoiser with weights"):
        asd.draw(torch.nn.Identity(), pipeline().scheduler, (1, 3))


def test_a_network_that_writes_into_its_input_is_thresholded_alike():
    class InPlace(torch.nn.Module):
        def __init__(self, there):
            super().__init__()
            self.weight, self.there = torch.nn.Parameter(torch.tensor(0.5)), there

        def forward(self, x, timesteps):
            return x.mul_(self.weight.item()) if self.there else x * self.weight

    scheduler = pipeline(thresholding=True, sample_max_value=1.5).scheduler
    drawn = [
        asd.draw(InPlace(there), scheduler, (2, 3), noise=Noise.draw((2, 3), STEPS, seed=1))[0]
        for there in (True, False)
    ]
    assert torch.equal(*drawn)


def test_what_thresholds_copies_from_the_host_once():
    """A captured call cannot."""
    scheduler = pipeline(thresholding=True).scheduler
    there = Thresholded(torch.nn.Identity(), scheduler)
    given = torch.empty(2, 3, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta")
    there.network.forward = lambda x, timesteps: x
    there(*given)
    assert there._kept.device.type == "meta"
