"""Latent pipelines of diffusers, conditioned by classes and by text, with guidance: their own
loops, and ours in place of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import asd_policy.integrations.diffusers as asd  # before diffusers: it says why

diffusers = pytest.importorskip("diffusers", minversion="0.21")
pytest.importorskip("diffusers.pipelines.ddpm")

from asd_policy.errors import InputError  # noqa: E402
from asd_policy.samplers.result import Noise  # noqa: E402

STEPS, SCALE, SHAPE = 20, 3.0, (2, 4, 8, 8)


def scheduler(**options: Any) -> Any:
    given = {"num_train_timesteps": STEPS, "beta_end": 0.3, "clip_sample": False}
    return diffusers.DDPMScheduler(**given | options)


def vae() -> torch.nn.Module:
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), norm_num_groups=4, sample_size=16,
    ).eval()  # fmt: skip


def dit(**options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    given = {
        "num_attention_heads": 2, "attention_head_dim": 4, "in_channels": 4, "out_channels": 4,
        "num_layers": 1, "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 1000,
    }  # fmt: skip
    made = diffusers.DiTTransformer2DModel(**given | options).eval()
    for parameter in made.parameters():  # which begin at zero, some of them
        torch.nn.init.normal_(parameter, std=0.2)
    return made


def its_noise(seed: int, twice: bool) -> Noise:
    """What a pipeline's own loop draws, step by step, from a generator of this seed; for both
    halves of its batch if ``twice``, of which it keeps the first."""
    generator, (batch, *sides) = torch.Generator().manual_seed(seed), SHAPE
    drawn = [torch.randn(SHAPE, generator=generator)]
    more = (1 + twice) * batch, *sides
    drawn += [torch.randn(more, generator=generator)[:batch] for _ in range(STEPS - 1)]
    steps = torch.stack([*drawn[1:], torch.zeros(SHAPE)], 1).flatten(2)
    return Noise(drawn[0].flatten(1), steps, torch.zeros(SHAPE[0], STEPS))


def decoded(autoencoder: Any, latents: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        pictures = autoencoder.decode(latents / autoencoder.config.scaling_factor).sample
    return (pictures / 2 + 0.5).clamp(0, 1)


def agree(
    pipeline: Any, guided: asd.Guided, cond: torch.Tensor, theirs: torch.Tensor, twice: bool = False
) -> None:
    """Sequential DDPM is the pipeline's loop, and ASD runs the same in fewer calls."""
    given = guided, pipeline.scheduler, SHAPE, cond
    latents, _ = asd.draw(*given, sampler="ddpm", noise=its_noise(3, twice))
    torch.testing.assert_close(decoded(pipeline.vae, latents), theirs, rtol=0, atol=2e-5)
    _, stats = asd.draw(*given, generator=torch.Generator().manual_seed(3))
    assert int(stats.calls.max()) < STEPS


@pytest.mark.parametrize("channels", [4, 8], ids=["fixed variance", "its own left out"])
def test_class_conditional_latents(channels: int) -> None:
    pipeline = diffusers.DiTPipeline(
        transformer=dit(out_channels=channels), vae=vae(), scheduler=scheduler()
    )
    pipeline.set_progress_bar_config(disable=True)
    classes = [5, 7]
    torch.manual_seed(3)  # its steps heed no generator
    theirs = pipeline(
        classes, guidance_scale=SCALE, num_inference_steps=STEPS, output_type="np"
    ).images
    cond = torch.tensor([[1000, each] for each in classes])
    guided = asd.Guided(pipeline.transformer, SCALE, "class_labels")
    agree(pipeline, guided, cond, torch.from_numpy(theirs).permute(0, 3, 1, 2), twice=True)


def test_a_window_is_chosen_for_a_conditional_network() -> None:
    """Which is timed with one sample's condition."""
    guided, cond = asd.Guided(dit(), SCALE, "class_labels"), torch.tensor([[1000, 5], [1000, 7]])
    latents, stats = asd.draw(guided, scheduler(), SHAPE, cond, window="auto")
    assert latents.shape == SHAPE
    assert int(stats.calls.max()) <= STEPS


def test_text_conditional_latents() -> None:
    pytest.importorskip("transformers")  # which its pipeline imports; nothing is tokenized here
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        attention_head_dim=4, cross_attention_dim=6,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae(), text_encoder=None, tokenizer=None, unet=unet, scheduler=scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.scheduler = scheduler()  # it has set steps_offset=1, with which step 20 of 20 is none
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    prompts, without = (torch.randn(2, 5, 6, generator=generator) for _ in range(2))
    theirs = pipeline(
        prompt_embeds=prompts, negative_prompt_embeds=without, guidance_scale=SCALE,
        num_inference_steps=STEPS, output_type="pt", height=16, width=16,
        generator=torch.Generator().manual_seed(3),
    ).images  # fmt: skip
    cond = torch.stack([without, prompts], 1)
    agree(pipeline, asd.Guided(pipeline.unet, SCALE), cond, theirs)


def test_mistakes_are_one_sentence() -> None:
    pipeline = diffusers.DiTPipeline(transformer=dit(), vae=vae(), scheduler=scheduler())
    guided, cond = asd.Guided(dit(), SCALE, "class_labels"), torch.tensor([[1000, 1]] * 2)
    with pytest.raises(InputError, match=r"got a DiTPipeline; its network can be given to draw\("):
        asd.sample(pipeline)
    with pytest.raises(InputError, match=r"cond must be of shape \(2, …\), .*; got \(1, 2\)"):
        asd.draw(guided, scheduler(), SHAPE, cond[:1])
    with pytest.raises(InputError, match=r"LabelEmbedding .* draws at random in training mode"):
        asd.draw(guided.train(), scheduler(), SHAPE, cond)
    shifted = scheduler(steps_offset=1)
    with pytest.raises(InputError, match=r"from_config\(scheduler.config, steps_offset=0\)"):
        asd.draw(guided.eval(), shifted, SHAPE, cond)
    wide = Plain(dit(out_channels=8))
    with pytest.raises(InputError, match=r"must return the shape .* \(2, 4, 8, 8\); got \(2, 8"):
        asd.draw(wide, scheduler(), SHAPE, cond[:, 1], sampler="ddpm")


class Plain(torch.nn.Module):
    """A DiT without guidance, as a denoiser."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        return self.network(x, t, class_labels=cond).sample
