"""The public functions: samples from a trained diffusion model, and what is known beforehand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asd_policy.denoiser import Network, PreparedNetwork
from asd_policy.engine import Engine
from asd_policy.errors import InputError, NonFiniteError, check_kind, whole, whole_from
from asd_policy.sampler import Sampler
from asd_policy.samplers.calibration import Calibration
from asd_policy.samplers.config import SamplerConfig
from asd_policy.samplers.costs import candidates
from asd_policy.samplers.result import Noise, Stats, Streams, seeded, streams
from asd_policy.schedule import Schedule


@dataclass(frozen=True, repr=False)
class Result:
    """What :func:`sample` returns. Printed, it is one line.

    Attributes:
        sample: (B, *shape) samples.
        stats: calls, evaluations, acceptance and time.
        calibration, engine: pass them to the next call of the same sampler and network.
    """

    sample: Tensor
    stats: Stats
    calibration: Calibration
    engine: Engine

    def __repr__(self) -> str:
        return f"sample of shape {tuple(self.sample.shape)}; {self.stats}"


def sample(
    denoiser: Network,
    schedule: Schedule,
    *,
    shape: tuple[int, ...],
    cond: Tensor | None = None,
    sampler: str = "asd",
    draft: str | None = None,
    calls_per_round: int | None = None,
    window: int | str = "auto",
    steps: int | None = None,
    eta: float | None = None,
    tolerance: float = 0.1,
    use_clipped_model_output: bool | None = None,
    rejoin: bool | None = None,
    engine: str | Engine = "eager",
    generator: Streams = None,
    seed: int | None = None,
    noise: Noise | None = None,
    calibration: Calibration | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Result:
    """Draw B independent samples from a trained diffusion model.

    ``sampler="asd"`` returns samples with exactly the distribution of ``sampler="ddpm"`` (up to
    floating-point arithmetic) for fewer sequential network calls; the same seed does not give
    the same sample.

    No gradients are recorded. (A network that takes some itself, as guidance by an energy does,
    does it under ``torch.inference_mode(False), torch.enable_grad()``, on a clone of x.)

    Within ``torch.autocast`` (or where ``torch.set_float32_matmul_precision`` shortens products)
    the network is called as its owner asked; a prepared network and all other arithmetic keep their
    own precision.

    Args:
        denoiser: ``denoiser(x, timesteps, cond)`` → what the network predicts; x (N, *shape[1:]),
            timesteps (N,) int64, cond with N rows or None. It must treat rows independently.
        schedule: noise schedule the network was trained for.
        shape: (B, …): chains, and the shape of one sample.
        cond: (B, …) condition of each chain: one tensor.
        sampler … rejoin: see ``SamplerConfig``.
        engine: what runs it: one of ``asd_policy.engine.ENGINES``, or ``result.engine`` of an
            earlier call for the same network, chain and shape, which keeps what it captured.
            "distributed": every rank makes this call, rank 0 draws, and all have the result.
        generator: one generator, from which each chain's own stream is seeded, or B of them.
        seed: in place of a generator, that of one on the chains' device.
        noise: in place of both, all randomness of the samples, on a chain of as many steps as
            this sampler takes; see ``Noise``, whose ``draw`` makes what a seed gives here.
        calibration: slopes and acceptance from earlier calls (``result.calibration``), costs too
            from :func:`calibrate`; it is updated. Without costs, "auto" means a window of 16. What
            one seed has taught it should not serve samples of the same seed.
        device: of the chains (default: an earlier engine's; else that of ``cond``, else of the
            generator, else the CPU).
        dtype: of the chains (default: an earlier engine's, else float32).

    Raises:
        ValueError: an unknown option, options that exclude each other, noise for other samples,
            conditions that are not one tensor, or a network in training mode whose batch norm or
            dropout would change what is sampled.
        NonFiniteError: a NaN or an infinity in ``cond``, in what the network returned, or in the
            sample.

    Source: Hu, Das, Sadigh & Anari, ICML 2025, arXiv 2505.03983.
    """
    shape = checked_shape(shape, cond)
    config = SamplerConfig(
        sampler, draft, calls_per_round, window, steps, eta, tolerance, use_clipped_model_output,
        rejoin,
    )  # fmt: skip
    device = _device(device, engine, cond, generator)
    made = _sampler(denoiser, schedule, shape, cond, config, engine, calibration, device, dtype)
    if noise is not None:
        check_noise(noise, seed, generator)
    generator = seeded(seed, generator, device)

    def draw() -> tuple[Tensor, Stats]:
        if noise is None:
            drawn = made.noise(streams(generator, shape[0]))
        else:
            drawn = noise.fitted(shape[0], made.schedule.num_steps, made.engine.like)
        x, stats = made.draw(drawn, cond)
        if not bool(x.isfinite().all()):
            raise NonFiniteError("the sample holds a NaN or infinite value")
        return x, stats

    x, stats = made.engine.lead(draw)
    # Copies made out here are ordinary tensors, which callers may change or differentiate.
    return Result(x.clone().view(shape), stats.copy(), made.calibration, made.engine)


def _sampler(
    denoiser: Network | PreparedNetwork,
    schedule: Schedule,
    shape: tuple[int, ...],
    cond: Tensor | None,
    config: SamplerConfig,
    engine: str | Engine = "eager",
    calibration: Calibration | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Sampler:
    if cond is not None and not bool(cond.isfinite().all()):
        raise NonFiniteError("cond holds a NaN or infinite value")
    return Sampler(
        denoiser, schedule, shape[1:], config,
        engine=engine, device=device, dtype=dtype, calibration=calibration,
        cond=None if cond is None else cond[:1],
    )  # fmt: skip


def check_noise(noise: object, *streams: object) -> None:
    """Raise a ValueError unless it is noise, and there is nothing beside it to draw some from."""
    check_kind("noise", noise, Noise, "a Noise, as Noise.draw makes it")
    if any(each is not None for each in streams):
        raise InputError("expected noise, or a seed or generator to draw it from, got both")


def checked_shape(shape: Any, cond: object) -> tuple[int, ...]:
    """The shape, in ints. Raises ValueError unless it is one of chains, and conditions have a row
    for each."""
    try:
        sizes = tuple(whole(size) for size in shape)
    except TypeError:
        sizes = ()
    if len(sizes) < 2 or not all(type(size) is int and size >= 1 for size in sizes):
        raise InputError(
            "shape must be (chains, sizes of one sample …), whole numbers from 1 on; got "
            f"{shape!r:.80}"
        )
    if cond is None:
        return sizes
    if not isinstance(cond, Tensor) or not cond.ndim:
        found = "a number" if isinstance(cond, Tensor) else f"a {type(cond).__name__}"
        raise InputError(
            f"cond must be a tensor with a row for each chain, or None; got {found} (several "
            "conditions can be put side by side in one tensor, which the network takes apart)"
        )
    if cond.layout != torch.strided:
        raise InputError(f"cond must be a dense tensor; got {cond.layout}")
    if len(cond) != sizes[0]:
        raise InputError(
            f"cond must be of shape ({sizes[0]}, …), a row for each chain; got {tuple(cond.shape)}"
        )
    return sizes


def _device(
    device: Any, engine: str | Engine, cond: Tensor | None, generator: Streams
) -> torch.device | str:
    """The chains': as asked, else the engine's, the conditions' or the generator's."""
    if device is not None:
        return device
    if isinstance(engine, Engine):
        return engine.like.device
    if cond is not None:
        return cond.device
    first = generator[0] if isinstance(generator, Sequence) and generator else generator
    return getattr(first, "device", "cpu")


def calibrate(
    denoiser: Network | PreparedNetwork,
    schedule: Schedule,
    *,
    shape: tuple[int, ...],
    cond: Tensor | None = None,
    chunks: int = 4,
    window: int = 32,
    measure_costs: bool = True,
    progress: Callable[[int], None] = lambda done: None,
    generator: Streams = None,
    seed: int | None = None,
    engine: str | Engine = "eager",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Calibration:
    """Learn slopes and acceptance from throw-away chunks, and time the network.

    Args:
        denoiser, schedule, shape, cond, generator, seed, engine, device, dtype: as for
            :func:`sample`; conditions should be typical.
        chunks: throw-away chunks with window ``window``, from which slopes are learned, and
            as many with every other window that "auto" may choose.
        measure_costs: time the network, for ``window="auto"``.
        progress: called with the number of chunks done.
        options: of the sampler, as for :func:`sample`.

    Returns:
        A calibration for the sampler, the number of steps and the network it was made with; without
        slopes and acceptance for a sampler that guesses nothing.
    """
    shape = checked_shape(shape, cond)
    chunks, window = whole_from(1, "chunks", chunks), whole_from(1, "window", window)
    config = SamplerConfig.named(options.pop("sampler", "asd"), asked_of=calibrate, **options)
    device = _device(device, engine, cond, generator)
    made = _sampler(denoiser, schedule, shape, cond, config, engine, None, device, dtype)
    generator = seeded(seed, generator, device)
    inputs = ((made.noise(streams(generator, shape[0])), cond) for _ in itertools.count())
    steps = made.schedule.num_steps

    def learn() -> Calibration:
        if "draft" in config.method.options:  # else there is nothing to learn
            made.calibrate(inputs, chunks, min(window, steps), candidates(steps), progress)
        if measure_costs:
            made.measure(again=False)
        return made.calibration

    return made.engine.lead(learn)
