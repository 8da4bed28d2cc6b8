"""Samplers of a diffusion chain behind one signature: :func:`sample`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asd_policy.denoiser import Network, check_mode
from asd_policy.engine import Engine, make_engine
from asd_policy.engine.timing import network_costs
from asd_policy.errors import NonFiniteError
from asd_policy.samplers.calibration import Calibration
from asd_policy.samplers.config import SamplerConfig
from asd_policy.samplers.costs import candidates
from asd_policy.samplers.result import Noise, Stats, Streams, draw_noise, seeded, streams
from asd_policy.schedule import Schedule

PARADIGMS_WINDOW = 64


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
    engine: str | Engine = "eager",
    generator: Streams = None,
    seed: int | None = None,
    calibration: Calibration | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Result:
    """Draw B independent samples from a trained diffusion model.

    ``sampler="asd"`` returns samples with exactly the law of ``sampler="ddpm"`` (up to
    floating-point arithmetic) for fewer sequential network calls; the same seed does not give
    the same sample.

    No gradients are recorded. Within ``torch.autocast`` (or where
    ``torch.set_float32_matmul_precision`` shortens products) the network is called as its owner
    asked; a prepared network and all other arithmetic keep their own precision.

    Args:
        denoiser: ``denoiser(x, timesteps, cond)`` → what the network predicts; x (N, *shape[1:]),
            timesteps (N,) int64, cond with N rows or None. It must treat rows independently.
        schedule: noise schedule the network was trained for.
        shape: (B, …): chains, and the shape of one sample.
        cond: (B, …) condition of each chain: one tensor.
        sampler … use_clipped_model_output: see ``SamplerConfig``.
        engine: what runs it: one of ``asd_policy.engine.ENGINES``, or ``result.engine`` of an
            earlier call for the same network, chain and shape, which keeps what it captured.
        generator: one generator, from which each chain's own stream is seeded, or B of them.
        seed: in place of a generator, that of one on the chains' device.
        calibration: slopes, acceptance and costs from earlier calls (``result.calibration`` or
            :func:`calibrate`); it is updated. Without one, "auto" means a window of 16.
        device: of the chains (default: that of ``cond``, else of the generator, else the CPU).
        dtype: of the chains.

    Raises:
        ValueError: an unknown option, options that exclude each other, conditions that are not one
            tensor, or a network in training mode whose batch norm or dropout would change what is
            sampled.
        NonFiniteError: a NaN or an infinity in ``cond``, in what the network returned, or in the
            sample.

    Source: Hu, Das, Sadigh & Anari, ICML 2025, arXiv 2505.03983.
    """
    _check_cond(cond, shape)
    device = _device(device, cond, generator)
    generator = seeded(seed, generator, device)
    config = SamplerConfig(
        sampler, draft, calls_per_round, window, steps, eta, tolerance, use_clipped_model_output
    )
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(
            f"shape must be (chains, sizes of one sample …), all positive; got {shape}"
        )
    if cond is not None and cond.is_floating_point() and not bool(cond.isfinite().all()):
        raise NonFiniteError("cond holds a NaN or infinite value")
    runner = _engine(engine, denoiser, config.schedule(schedule), shape, (device, dtype))
    noise = draw_noise(streams(generator, shape[0]), runner.schedule.num_steps, runner.like)
    calibration = calibration or Calibration()
    x, stats = draw(config, runner, noise, cond, calibration)
    if not bool(x.isfinite().all()):
        raise NonFiniteError("the sample holds a NaN or infinite value")
    # Copies made out here are ordinary tensors, which callers may change or differentiate.
    return Result(x.clone().view(shape), stats.copy(), calibration, runner)


def _check_cond(cond: object, shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless there is one row for each chain."""
    if cond is None:
        return
    if not isinstance(cond, Tensor) or not cond.ndim:
        found = "a number" if isinstance(cond, Tensor) else f"a {type(cond).__name__}"
        raise ValueError(
            f"cond must be a tensor with a row for each chain, or None; got {found} (several "
            "conditions can be put side by side in one tensor, which the network takes apart)"
        )
    if len(cond) != shape[0]:
        raise ValueError(f"cond must have {shape[0]} rows, one for each chain; got {len(cond)}")


def _device(device: Any, cond: Tensor | None, generator: Streams) -> torch.device | str:
    """The chains': as asked, else the conditions', else the generator's."""
    if device is not None:
        return device
    return cond.device if cond is not None else getattr(generator, "device", "cpu")


def _engine(
    engine: str | Engine,
    denoiser: Network,
    chain: Schedule,
    shape: tuple[int, ...],
    place: tuple[torch.device | str, torch.dtype],
) -> Engine:
    """The one given, if it fits, or a new one."""
    if isinstance(engine, str):
        return make_engine(engine, denoiser, chain, shape[1:], *place)
    check_mode(engine.source)
    wanted, steps = tuple(shape[1:]), engine.schedule.num_steps
    if (engine.source, engine.schedule.to_dict(), engine.shape) != (
        denoiser, chain.to_dict(), wanted,
    ):  # fmt: skip
        raise ValueError(
            f"this engine is for samples of shape {engine.shape} in {steps} steps of its own "
            f"network; got shape {wanted} in {chain.num_steps} steps"
        )
    return engine


def draw(
    config: SamplerConfig,
    engine: Engine,
    noise: Noise,
    cond: Tensor | None,
    calibration: Calibration,
    together: int | None = None,
) -> tuple[Tensor, Stats]:
    """Run a sampler on noise that is given; the engine's chain is ``config.schedule(trained)``.

    ``together``: chains that "auto" chooses the window for, if not the number of these.
    """
    if config.name in ("ddpm", "ddim"):
        return engine.sequential(noise, cond, config.name)
    batch, num_steps = noise.log_uniform.shape
    window = window_of(config, calibration, together or batch, num_steps)
    if config.name == "paradigms":
        return engine.paradigms(noise, cond, window, config.tolerance)
    if window == 1 and config.window == "auto":  # where nothing is gained
        return engine.sequential(noise, cond, "asd")
    return engine.asd(noise, cond, *config.form, window, calibration)


def window_of(config: SamplerConfig, calibration: Calibration, batch: int, num_steps: int) -> int:
    """The window of a chunk for ``batch`` chains, "auto" chosen (1: sequentially)."""
    if config.window != "auto":
        return min(int(config.window), num_steps)
    if config.name == "paradigms":
        return min(PARADIGMS_WINDOW, num_steps)
    return calibration.window(batch, num_steps)


def calibrate(
    denoiser: Network,
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
    **options: object,
) -> Calibration:
    """Learn slopes and acceptance from throw-away chunks, and time the network.

    Args:
        denoiser, schedule, shape, cond, generator, seed: as for :func:`sample`; conditions should
            be typical.
        chunks: calls of :func:`sample` with window ``window``, from which slopes are learned, and
            as many with every other window that "auto" may choose.
        measure_costs: time the network, for ``window="auto"``.
        progress: called with the number of chunks done.
        options: further arguments of :func:`sample`.

    Returns:
        A calibration for the sampler, the number of steps and the network it was made with.
    """
    _check_cond(cond, shape)
    generator = seeded(seed, generator, _device(options.get("device"), cond, generator))
    given: dict[str, Any] = {"shape": shape, "cond": cond, "generator": generator, **options}
    calibration = given["calibration"] = Calibration()
    done = itertools.count(1)

    def chunk(width: int) -> Stats:
        result = sample(denoiser, schedule, window=width, **given)
        given["engine"] = result.engine
        progress(next(done))
        return result.stats

    steps = given.get("steps") or schedule.num_steps
    calibration.learn(chunk, min(window, steps), chunks, candidates(steps))
    if measure_costs:
        calibration.use_costs(network_costs(given["engine"], None if cond is None else cond[:1]))
    return calibration
