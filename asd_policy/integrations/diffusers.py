"""diffusers: images of its DDPM pipelines, and any of its networks through a denoiser.

    import asd_policy.integrations.diffusers as asd
    images = asd.sample(pipeline, batch_size=16, generator=g, sampler="asd").images

``pipeline`` is a ``DDPMPipeline`` (``from_pretrained`` as usual). Pipelines that are conditioned or
work on latents sample their latents by :func:`draw`, with :class:`Guided` or a denoiser of one's
own in the place of their network, and decode them as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from asd_policy.errors import AsdPolicyError, InputError
from asd_policy.integrations.diffusers_chain import trained_schedule
from asd_policy.sampler import Sampler
from asd_policy.samplers.config import SamplerConfig
from asd_policy.samplers.result import Noise, Stats, Streams, streams
from asd_policy.schedule import Schedule

WINDOW = 32  # where none is asked for: a fixed one, so that a seed gives the same images


@dataclass(frozen=True)
class Images:
    """What a pipeline made.

    Attributes:
        images: as the pipeline's own: PIL pictures, or (B, H, W, C) NumPy or (B, C, H, W) tensors
            of numbers in [0, 1]. stats: what they cost.
    """

    images: Any
    stats: Stats


def sample(
    pipeline: Any,
    batch_size: int = 1,
    generator: Streams = None,
    sampler: str | SamplerConfig = "asd",
    *,
    num_inference_steps: int | None = None,
    output_type: str = "pil",
    rows_at_once: int | None = None,
    engine: str = "eager",
    **options: Any,
) -> Images:
    """Images of a ``DDPMPipeline``, distributed as its own loop makes them.

    Args:
        pipeline: on its device. batch_size: images, each from a random stream of its own.
        generator: seeds the streams, or one for each image.
        sampler, options: a name with options of ``SamplerConfig``, or a ``SamplerConfig``.
        num_inference_steps: of the chain; None is all that the network was trained for.
        output_type: "pil", "np" or "pt", as for the pipeline.
        rows_at_once, engine: as for :func:`draw`.

    Raises:
        ValueError: a pipeline or scheduler that is no DDPM, or an option that is unknown.
        AsdPolicyError: the device has too little memory; says for what.
    """
    network, scheduler = (getattr(pipeline, part, None) for part in ("unet", "scheduler"))
    if network is None or scheduler is None or hasattr(pipeline, "vae"):
        raise InputError(
            "expected a DDPMPipeline (a pipeline of a UNet2DModel and a DDPMScheduler), got a "
            f"{type(pipeline).__name__}; its network can be given to draw(denoiser, scheduler, …)"
        )
    if output_type not in ("pil", "np", "pt"):
        raise InputError(f"output_type must be 'pil', 'np' or 'pt', got {output_type!r}")
    size = network.config.sample_size
    sides = (size, size) if isinstance(size, int) else tuple(size)
    x, stats = draw(
        network,
        scheduler,
        (batch_size, network.config.in_channels, *sides),
        sampler=sampler,
        num_inference_steps=num_inference_steps,
        generator=generator,
        rows_at_once=rows_at_once,
        engine=engine,
        **options,
    )
    pictures: Any = (x / 2 + 0.5).clamp(0, 1)
    if output_type != "pt":
        pictures = pictures.float().cpu().permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            pictures = pipeline.numpy_to_pil(pictures)
    return Images(pictures, stats)


def draw(
    denoiser: nn.Module,
    scheduler: Any,
    shape: Sequence[int],
    cond: Tensor | None = None,
    *,
    sampler: str | SamplerConfig = "asd",
    num_inference_steps: int | None = None,
    generator: Streams = None,
    noise: Noise | None = None,
    rows_at_once: int | None = None,
    engine: str = "eager",
    **options: Any,
) -> tuple[Tensor, Stats]:
    """Samples of a network of diffusers, and what they cost.

    The noise of a whole chain is drawn before it starts, so that K + 1 numbers of float32 are kept
    for each number of a sample: 12 MB for an image of 32×32×3 and K = 1000, 0.8 GB for 256×256×3.

    Args:
        denoiser: a ``UNet2DModel``, or a module ``denoiser(x, timesteps, cond)`` that returns a
            tensor (:class:`Guided` is one), in evaluation mode.
        scheduler: the ``DDPMScheduler`` that it was trained with; its timesteps need not be set.
        shape: (B, …) of the samples. cond: (B, …) of each, handed to the denoiser in rows.
        sampler, options, num_inference_steps, generator: as for :func:`sample`.
        noise: in place of a generator, all randomness.
        rows_at_once: the most rows that are given to the denoiser in one call, for its memory; the
            rows of a round are cut into so many. None: all. (Calls are counted as before.)
        engine: what runs it, one of ``asd_policy.engine.ENGINES``.

    Raises: as :func:`sample`.
    """
    if isinstance(sampler, str) and "window" in SamplerConfig(sampler).method.options:
        options = {"window": WINDOW} | options
    config = SamplerConfig.named(sampler, **options)
    parameter = next(denoiser.parameters())
    made = Sampler(
        _Rows(denoiser, rows_at_once),
        _chain(scheduler, num_inference_steps),
        tuple(shape[1:]),
        config,
        engine=engine,
        device=parameter.device,
    )
    if noise is None:
        noise = made.noise(streams(generator, shape[0]))
    else:
        noise = noise.fitted(shape[0], made.schedule.num_steps, made.engine.like)
    with torch.inference_mode():
        x, stats = made.draw(noise, cond)
    made.close()
    return x.clone(), stats.copy()


def _chain(scheduler: Any, steps: int | None) -> Schedule:
    kind = type(scheduler).__name__
    if kind != "DDPMScheduler":
        raise InputError(
            f"expected a DDPMScheduler, got a {kind}, whose steps are another chain. The DDPM that "
            "the network was trained for is DDPMScheduler.from_config(scheduler.config)"
        )
    variance = scheduler.config.get("variance_type")
    if variance in ("learned", "learned_range"):
        raise InputError(
            f"variance_type={variance!r}: the network predicts its own variance, and drafts need "
            "one that is known before the network is called; expected fixed_small or fixed_large"
        )
    schedule = trained_schedule(scheduler)
    return schedule if steps is None or steps == schedule.num_steps else schedule.respaced(steps)


class _Rows(nn.Module):
    """A network of diffusers as samplers call it, a few rows at a time."""

    def __init__(self, network: nn.Module, most: int | None) -> None:
        super().__init__()
        if most is not None and most < 1:
            raise InputError(f"rows_at_once must be 1 or more, got {most}")
        self.network, self._most = network, most
        self._dtype = next(network.parameters()).dtype

    def forward(self, x: Tensor, timesteps: Tensor, cond: Tensor | None = None) -> Tensor:
        most = self._most or len(x)
        cuts = [slice(i, i + most) for i in range(0, len(x), most)]
        conds = [None if cond is None else cond[cut] for cut in cuts]
        parts = [self._call(x[cut], timesteps[cut], c) for cut, c in zip(cuts, conds, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _call(self, x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
        try:
            given = x.to(self._dtype), timesteps
            out = self.network(*given) if cond is None else self.network(*given, cond)
        except torch.cuda.OutOfMemoryError as error:
            raise AsdPolicyError(
                f"{len(x)} rows of {tuple(x.shape[1:])} at once do not fit into the memory of "
                f"{x.device}; rows_at_once={max(1, len(x) // 2)} takes half of it"
            ) from error
        return out if isinstance(out, Tensor) else out.sample


class Guided(nn.Module):
    """A denoiser with classifier-free guidance (Ho and Salimans, 2022): both halves in one call.

    The guided prediction u + scale·(c − u) is part of the target, so that what is sampled from it
    is exact for it.

    Args:
        network: a ``UNet2DConditionModel``, called with ``encoder_hidden_states``; or, with
            ``argument="class_labels"``, a ``UNet2DModel`` with classes.
        scale: of the guidance; 1 is the conditional model alone.

    Its ``cond`` is (B, 2, …): of each sample the unconditional one, then its own.
    """

    def __init__(
        self, network: nn.Module, scale: float, argument: str = "encoder_hidden_states"
    ) -> None:
        super().__init__()
        self.network, self.scale, self.argument = network, scale, argument

    def forward(self, x: Tensor, timesteps: Tensor, cond: Tensor) -> Tensor:
        given = {self.argument: cond.transpose(0, 1).flatten(0, 1)}
        both = self.network(torch.cat([x, x]), torch.cat([timesteps, timesteps]), **given).sample
        without, with_it = both.chunk(2)
        guided: Tensor = without + self.scale * (with_it - without)
        return guided
