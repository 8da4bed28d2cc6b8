"""The two models of this study: their pictures, their networks, and where they are kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from asd_policy.device import resolve_device
from asd_policy.errors import InputError
from asd_policy.eval.studies.pictures.scenes import SIDE, make_scenes, read_scenes
from asd_policy.integrations.torchvision_operators import import_torchvision
from asd_policy.samplers.result import Stats

OUT = Path("outputs/pictures")
Name = Literal["digits", "scenes"]  # of MODELS, as commands take it


@dataclass(frozen=True)
class Model:
    """A pixel DDPM and its training.

    Attributes:
        side, channels: of its pictures. blocks: channels of the U-Net's resolutions.
        groups: of its normalization. steps, batch, rate: of the training. chain: K.
    """

    side: int
    channels: int
    blocks: tuple[int, ...]
    groups: int
    steps: int
    batch: int
    rate: float
    chain: int = 1000

    def unet(self) -> Any:
        """diffusers' ``UNet2DModel`` with random weights, 0.2 to 0.6 M of them."""
        from diffusers import UNet2DModel

        return UNet2DModel(
            sample_size=self.side,
            in_channels=self.channels,
            out_channels=self.channels,
            layers_per_block=1,
            block_out_channels=self.blocks,
            norm_num_groups=self.groups,
            add_attention=False,
            down_block_types=("DownBlock2D",) * len(self.blocks),
            up_block_types=("UpBlock2D",) * len(self.blocks),
        )


MODELS = {
    "digits": Model(8, 1, (16, 32), 8, steps=2500, batch=128, rate=2e-3),
    "scenes": Model(SIDE, 3, (8, 16, 32, 64), 1, steps=2000, batch=16, rate=2e-3),
}


def model_called(name: str) -> Model:
    """One of MODELS. Raises ValueError for another name."""
    if name not in MODELS:
        raise InputError(f"expected one of {', '.join(MODELS)}, got {name!r}")
    return MODELS[name]


@dataclass(frozen=True)
class Pictures:
    """Attributes: values (N, C, H, W) float32 in [-1, 1]; labels (N,) int64; names of labels."""

    values: Tensor
    labels: Tensor
    names: tuple[str, ...]


def pictures_of(name: str, out: Path, episodes: int) -> Pictures:
    """What a model is trained on: scikit-learn's digits, or scenes, which are rendered first where
    they are missing.

    Args:
        out: folder of the study. episodes: of each task, of scenes.
    """
    if name == "digits":
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise InputError(
                f"digits need scikit-learn ({error}); pip install scikit-learn"
            ) from error
        found = load_digits()
        values = torch.from_numpy(found.images[:, None]).float() / 8 - 1
        return Pictures(values, torch.from_numpy(found.target).long(), tuple("0123456789"))
    folder = out / "scenes" / "views"
    make_scenes(folder, episodes)
    pixels, labels, names = read_scenes(folder, episodes)
    return Pictures(as_values(pixels), torch.from_numpy(labels).long(), names)


def as_values(pixels: np.ndarray) -> Tensor:
    """(N, C, H, W) in [-1, 1] of (N, H, W, C) uint8."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def as_pixels(values: Tensor) -> np.ndarray:
    """(N, H, W, C) uint8, as pictures are saved, of (N, C, H, W) in [-1, 1]."""
    levels = ((values.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).cpu().numpy()


def check_diffusers() -> None:
    """Raise ValueError where diffusers cannot be imported."""
    import_torchvision()
    try:
        import diffusers  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"pictures need diffusers ({error}); pip install 'asd-policy[diffusers]'"
        ) from error


def load_pipeline(name: str, out: Path, device: str) -> Any:
    """The trained ``DDPMPipeline``, as diffusers loads it, on a device; "auto" is a GPU where there
    is one.

    Raises:
        ValueError: there is none yet, no diffusers, or no such device.
    """
    device = resolve_device(device)
    check_diffusers()
    from diffusers import DDPMPipeline
    from diffusers.utils import logging

    folder = out / name / "pipeline"
    if not (folder / "model_index.json").is_file():
        raise InputError(
            f"{folder} holds no pipeline; `python -m asd_policy.eval.studies.pictures train "
            f"{name}` makes it"
        )
    logging.disable_progress_bar()
    made = DDPMPipeline.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    made.unet.eval()
    if device == "cpu":  # a third faster there, and the same numbers up to rounding
        made.unet.to(memory_format=torch.channels_last)
    return made.to(device)


def trained_steps(pipeline: Any, *asked: int) -> int:
    """K that a pipeline's network was trained for. Raises ValueError where more were asked for."""
    most = int(pipeline.scheduler.config.num_train_timesteps)
    if max(asked, default=0) > most:
        raise InputError(
            f"--steps takes numbers up to {most}, those that the model was trained for; got "
            f"{max(asked)}"
        )
    return most


def draw(
    pipeline: Any, sampler: str, first: int, count: int, **options: Any
) -> tuple[Tensor, Stats]:
    """`count` pictures (B, C, H, W) of a pipeline, on the CPU, from the streams of the numbers from
    `first` on, and what they cost.

    Args:
        options: of ``asd_policy.integrations.diffusers.draw``.
    """
    import asd_policy.integrations.diffusers as asd

    config = pipeline.unet.config
    shape = (count, config.in_channels, config.sample_size, config.sample_size)
    generators = [torch.Generator("cpu").manual_seed(first + i) for i in range(count)]
    values, stats = asd.draw(
        pipeline.unet, pipeline.scheduler, shape, sampler=sampler, generator=generators,
        verbose=False, **options,
    )  # fmt: skip
    return values.cpu(), stats


def parameters(network: nn.Module) -> int:
    """How many numbers a network has."""
    return sum(p.numel() for p in network.parameters())
