"""diffusers: images of its DDPM pipelines, and any of its networks through a denoiser.

    import asd_policy.integrations.diffusers as asd
    images = asd.sample(pipeline, batch_size=16, generator=g, sampler="asd").images

``pipeline`` is a ``DDPMPipeline`` (``from_pretrained`` as usual). Pipelines that are conditioned or
work on latents sample their latents by :func:`draw`, with :class:`Guided` or a denoiser of one's
own in the place of their network, and decode them as before.

Imported first, it also helps a torchvision that was built for another PyTorch, without which
diffusers would not import.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from asd_policy.errors import InputError, whole_from
from asd_policy.integrations.diffusers_chain import check_spacing, trained_schedule
from asd_policy.integrations.diffusers_denoisers import Guided as Guided
from asd_policy.integrations.diffusers_denoisers import Rows, Thresholded, device_of
from asd_policy.integrations.diffusers_memory import Memory, free_bytes, picture_noise, room_for
from asd_policy.integrations.torchvision_operators import import_torchvision
from asd_policy.sampler import Sampler
from asd_policy.samplers.acceptance import Acceptance
from asd_policy.samplers.calibration import Learned
from asd_policy.samplers.config import SamplerConfig
from asd_policy.samplers.result import Noise, Stats, Streams, check_streams, streams
from asd_policy.sampling import check_noise, checked_shape
from asd_policy.schedule import Schedule

import_torchvision()

WINDOW = 32  # where none is asked for: a fixed one, so that a seed gives the same images
_learned: WeakKeyDictionary[nn.Module, dict[str, Learned]] = WeakKeyDictionary()
_LITTLE = 2**28  # bytes up to which all steps are kept, on a CPU: the arithmetic is faster then


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
    max_memory: int | None = None,
    verbose: bool = True,
    engine: str = "eager",
    **options: Any,
) -> Images:
    """Images of a ``DDPMPipeline``, distributed as its own loop makes them.

    Args:
        pipeline: on its device. batch_size: images, each from a random stream of its own.
        generator: seeds the streams, or one for each image.
        sampler, options: a name with options of ``SamplerConfig``, or a ``SamplerConfig``. With
            ``window="auto"`` the network is timed on this machine, once, and the window is the one
            that takes the least time for so many images: 1, sequential DDPM, where none is faster.
            The first call goes by how often drafts are typically accepted, later ones of the same
            pipeline by what those before them learned: give each another seed, for what a
            seed has taught should not serve images of the same seed. (With any other window nothing
            is learned, and a seed gives the same images again.)
        num_inference_steps: of the chain; None is all that the network was trained for (of "ddim",
            10).
        output_type: "pil", "np" or "pt", as for the pipeline.
        rows_at_once, max_memory, verbose, engine: as for :func:`draw`.

    Raises:
        ValueError: a pipeline or scheduler that is no DDPM, an option that is unknown, or a number
            or a generator that is none.
        AsdPolicyError: the device has too little memory; says for what.
    """
    SamplerConfig.named(sampler, asked_of=sample, **options)  # draw would not list batch_size
    network, scheduler = (getattr(pipeline, part, None) for part in ("unet", "scheduler"))
    more = set(getattr(pipeline, "components", ())) - {"unet", "scheduler"}
    if network is None or scheduler is None or hasattr(pipeline, "vae") or more:  # a "vqvae", too
        raise InputError(
            "expected a DDPMPipeline (a pipeline of a UNet2DModel and a DDPMScheduler), got a "
            f"{type(pipeline).__name__}; its network can be given to draw(denoiser, scheduler, …)"
        )
    if output_type not in ("pil", "np", "pt"):
        raise InputError(f"output_type must be 'pil', 'np' or 'pt', got {output_type!r}")
    batch_size = whole_from(1, "batch_size", batch_size)
    if not hasattr(network, "config"):
        raise InputError(
            "expected a UNet2DModel, whose config says how large pictures are, in pipeline.unet; "
            f"got a {type(network).__name__}; draw(denoiser, scheduler, shape, …) takes any module"
        )
    size = network.config.sample_size
    if size is None:
        raise InputError(
            "the UNet2DModel's sample_size is None, so it does not say how large pictures are; "
            "draw(denoiser, scheduler, shape, …) takes their shape"
        )
    sides = (size, size) if isinstance(size, int) else tuple(size)
    x, stats = draw(
        network,
        scheduler,
        (batch_size, network.config.in_channels, *sides),
        sampler=sampler,
        num_inference_steps=num_inference_steps,
        generator=generator,
        rows_at_once=rows_at_once,
        max_memory=max_memory,
        verbose=verbose,
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
    max_memory: int | None = None,
    verbose: bool = True,
    engine: str = "eager",
    **options: Any,
) -> tuple[Tensor, Stats]:
    """Samples of a network of diffusers, and what they cost.

    Of a chain, no more than a window of steps is kept, and what that takes is said beforehand: see
    ``Memory`` (:mod:`asd_policy.integrations.diffusers_memory`).

    Args:
        denoiser: a ``UNet2DModel``, or a module ``denoiser(x, timesteps, cond)`` that returns a
            tensor (:class:`Guided` is one), in evaluation mode.
        scheduler: the ``DDPMScheduler`` that it was trained with; its timesteps need not be set.
        shape: (B, …) of the samples. cond: (B, …) of each, handed to the denoiser in rows.
        sampler, options, num_inference_steps, generator: as for :func:`sample`.
        noise: in place of a generator, all randomness.
        rows_at_once: the most rows that are given to the denoiser in one call, for its memory; the
            rows of a round are cut into so many. None: all. (Calls are counted as before.)
        max_memory: bytes that samples may take beside the network; None is what the device has
            free. Where they need more, nothing is begun.
        verbose: print what they take, in a line, before they are begun.
        engine: what runs it, one of ``asd_policy.engine.ENGINES``; "distributed": every rank makes
            this call, and all have the result.

    Raises: as :func:`sample`.
    """
    shape = checked_shape(shape, cond)
    max_memory = None if max_memory is None else whole_from(1, "max_memory", max_memory)
    if noise is None:
        check_streams(generator, shape[0])
    else:
        check_noise(noise, generator)
    config = _config(sampler, options, num_inference_steps)
    device, chain = device_of(denoiser), _chain(scheduler, config)
    network: nn.Module = Rows(denoiser, rows_at_once)
    if scheduler.config.get("thresholding"):
        network = Thresholded(network, scheduler)
    made = Sampler(
        network, chain, shape[1:], config, engine=engine, device=device,
        kernels=_kernels(config, shape, config.schedule(chain).num_steps, device, max_memory),
        cond=None if cond is None else cond[:1],
    )  # fmt: skip
    check_spacing(made.schedule, made.schedule.num_steps)
    _choose_window(made, denoiser, shape[0])
    plan = made.plan(shape[0])  # one window for the memory and for the chunk
    memory = _memory(made, shape)
    if verbose and made.engine.leads:
        print(f"asd-policy: {memory}")
    most = _room(device, max_memory)  # by now: a timed network may have taken some
    memory.check(most, "max_memory" if max_memory is not None else f"free on {device}")

    def work() -> tuple[Tensor, Stats]:
        less = memory.fits(free_bytes(device) or memory.total // 2)
        with torch.inference_mode(), room_for(str(memory), device, less):
            if noise is None:
                drawn = picture_noise(streams(generator, shape[0]), memory, made.engine.like)
            else:
                drawn = noise.fitted(shape[0], made.schedule.num_steps, made.engine.like)
            return made.draw(drawn, cond, plan)

    x, stats = made.engine.lead(work)
    made.engine.release()
    return x.clone(), stats.copy()


def _choose_window(made: Sampler, denoiser: nn.Module, batch: int) -> None:
    """That of so many samples at once, for the memory as for the chunk."""
    if made.needs_costs:  # "auto"
        with torch.inference_mode():
            made.engine.lead(lambda: made.measure(again=False))
        made.calibration.learned = _learned_of(denoiser, made)
    made.expect(batch)


def _learned_of(denoiser: nn.Module, made: Sampler) -> Learned:
    """What earlier calls with "auto" learned of this network in this chain; what is typical, where
    there was none."""
    key = repr((made.schedule.to_dict(), made.shape, made.config))
    learned = _learned.setdefault(denoiser, {}).setdefault(key, Learned())
    if learned.acceptance is None:
        learned.acceptance = Acceptance.typical(made.schedule.num_steps)
    return learned


def _room(device: torch.device, max_memory: int | None) -> int | None:
    return free_bytes(device) if max_memory is None else max_memory


def _kernels(
    config: SamplerConfig,
    shape: tuple[int, ...],
    steps: int,
    device: torch.device,
    max_memory: int | None,
) -> str:
    """Those that keep all steps, where these are little and there is room; else PyTorch's."""
    most = _room(device, max_memory)
    enough = _LITTLE if most is None else min(_LITTLE, most)
    window = WINDOW if config.window == "auto" else min(int(config.window), steps)
    little = Memory(shape, steps, window, whole=True).total <= enough
    return "auto" if config.rejoin or (little and device.type == "cpu") else "torch"


def _memory(made: Sampler, shape: tuple[int, ...]) -> Memory:
    rejoin, lean = bool(made.config.rejoin), made.engine.lean and made.engine.kernels == "torch"
    every_step = rejoin or not lean or made.config.name not in ("asd", "ddpm", "ddim")
    return Memory(shape, made.schedule.num_steps, made.window or 1, every_step, rejoin)


def _config(
    sampler: str | SamplerConfig, options: dict[str, Any], steps: int | None
) -> SamplerConfig:
    if isinstance(sampler, str) and "window" in SamplerConfig(sampler).method.options:
        options = {"window": WINDOW} | options
    config = SamplerConfig.named(sampler, asked_of=draw, **options)
    named = "steps" in options or isinstance(sampler, SamplerConfig)
    return _of_so_many(config, named, steps)


def _of_so_many(config: SamplerConfig, named: bool, steps: int | None) -> SamplerConfig:
    """The sampler, of so many steps as ``num_inference_steps`` says.

    Args:
        named: whether the sampler's own steps were; a DDIM's default ones were not.
    """
    if steps is None or config.steps == steps:
        return config
    if config.steps is not None and (named or config.name != "asd"):
        raise InputError(f"expected one number of steps, got {config.steps} and {steps}")
    return replace(config, steps=steps)


def _chain(scheduler: Any, config: SamplerConfig) -> Schedule:
    kind = type(scheduler).__name__
    if kind != "DDPMScheduler":
        told = getattr(scheduler, "config", {})
        trained = "there is no DDPM that such a network was trained for"
        if "beta_schedule" in told:
            trained = (
                "the DDPM that the network was trained for is "
                "DDPMScheduler.from_config(scheduler.config)"
            )
        raise InputError(f"expected a DDPMScheduler, got a {kind}; {trained}")
    variance = scheduler.config.get("variance_type")
    if variance in ("learned", "learned_range"):
        raise InputError(
            f"variance_type={variance!r}: the network predicts its own variance, and drafts need "
            "one that is known before the network is called; expected fixed_small or fixed_large"
        )
    # What thresholding leaves is what the network predicts: see Thresholded.
    thresholded = {"thresholding": False, "clip_sample": False, "prediction_type": "sample"}
    changes = thresholded if scheduler.config.get("thresholding") else {}
    if changes and config.name == "ddim" and not config.use_clipped_model_output:
        raise InputError(
            "this scheduler thresholds what the network predicts, whose own ε a DDIM's steps go "
            "along; expected sampler='ddim-clipped', which goes along that of what is left"
        )
    return trained_schedule(scheduler, **changes)
