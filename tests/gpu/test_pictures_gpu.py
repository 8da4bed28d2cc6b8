"""Pictures of diffusers' pipelines on a CUDA device."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

import asd_policy.integrations.diffusers as asd

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def pipeline(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
        block_out_channels=(8, 8), norm_num_groups=4, add_attention=False,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    return DDPMPipeline(unet=network.eval(), scheduler=DDPMScheduler(20)).to("cuda")


@pytest.mark.parametrize("engine", ["eager", "cuda_graph"])
@pytest.mark.parametrize("sampler", ["asd", "asd-paper", "ddpm", "paradigms", "ddim"])
def test_pictures_are_those_of_a_cpu(pipeline, sampler, engine):
    found = {}
    for device in ("cuda", "cpu"):
        generators = [torch.Generator().manual_seed(i) for i in range(3)]
        pipeline.to(device)
        used = engine if device == "cuda" else "eager"
        found[device] = asd.sample(
            pipeline, 3, generators, sampler, output_type="np", engine=used, verbose=False
        )
    assert found["cuda"].stats.calls.tolist() == found["cpu"].stats.calls.tolist()
    assert abs(found["cuda"].images - found["cpu"].images).max() < 1e-3


def test_sequential_pictures_are_the_pipelines_own_loops(pipeline):
    """On the noise that its loop draws, a GPU's generator's."""
    theirs = pipeline(
        2, torch.Generator("cuda").manual_seed(1), 20, output_type="np", return_dict=False
    )[0]
    generator = torch.Generator("cuda").manual_seed(1)
    drawn = [torch.randn(2, 1, 8, 8, generator=generator, device="cuda") for _ in range(20)]
    noise = asd_noise(drawn)
    values, _ = asd.draw(
        pipeline.unet, pipeline.scheduler, (2, 1, 8, 8), sampler="ddpm", noise=noise, verbose=False
    )
    ours = (values / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).numpy()
    assert abs(ours - theirs).max() < 1e-4


def asd_noise(drawn):
    from asd_policy.samplers.result import Noise

    flat = torch.stack([each.flatten(1) for each in drawn], 1)
    kicks = torch.cat([flat[:, 1:], torch.zeros_like(flat[:, :1])], 1)
    return Noise(flat[:, 0], kicks, torch.zeros(flat.shape[:2], device="cuda"))


def test_a_scheduler_that_has_trained_here(pipeline):
    points = torch.zeros(1, 1, 8, 8, device="cuda")
    pipeline.scheduler.add_noise(points, points, torch.tensor([3], device="cuda"))
    assert pipeline.scheduler.alphas_cumprod.is_cuda
    asd.sample(pipeline, verbose=False)
