"""Samplers of a diffusion chain behind one signature: :func:`sample`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from asd_policy.denoiser import Denoiser, Network
from asd_policy.drafts import DRAFTS
from asd_policy.samplers.asd import sample_asd
from asd_policy.samplers.calibration import Calibration
from asd_policy.samplers.ddpm import sample_ddpm
from asd_policy.samplers.paradigms import sample_paradigms
from asd_policy.samplers.result import Noise, Stats, Streams, draw_noise, streams
from asd_policy.schedule import Schedule, check_choice

SAMPLERS = ("asd", "ddpm", "ddim", "paradigms")
PARADIGMS_WINDOW = 64

__all__ = [
    "SAMPLERS",
    "Calibration",
    "Result",
    "SamplerConfig",
    "Stats",
    "calibrate",
    "sample",
    "sample_with",
]


@dataclass(frozen=True)
class Result:
    """What :func:`sample` returns.

    Attributes:
        sample: (B, *shape) samples.
        stats: calls, evaluations, acceptance and time.
        calibration: pass it to the next call of the same sampler and network.
    """

    sample: Tensor
    stats: Stats
    calibration: Calibration


@dataclass(frozen=True)
class SamplerConfig:
    """A sampler and its options.

    Attributes:
        name: "asd" (exact), "ddpm" (sequential), "ddim" or "paradigms" (approximate).
        draft: of ASD: "secant", "slope", "memory" or "frozen".
        calls_per_round: of ASD: 1, or 2 (with ``draft="frozen"``, the paper's own algorithm).
        window: θ, steps guessed ahead; "auto" chooses it from measured cost and acceptance.
        steps: steps of the chain, at most the training steps (default: all; "ddim": 10).
        eta: noise of DDIM, 0 … 1 ("ddim": 0 by default; with "asd", the DDIM chain of that η).
        tolerance: of ParaDiGMS.

    Raises:
        ValueError: an unknown name or option, or options that exclude each other.
    """

    name: str = "asd"
    draft: str = "secant"
    calls_per_round: int = 1
    window: int | str = "auto"
    steps: int | None = None
    eta: float | None = None
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        check_choice("sampler", self.name, SAMPLERS)
        check_choice("draft", self.draft, DRAFTS)
        check_choice("calls_per_round", self.calls_per_round, (1, 2))
        window = self.window
        if window != "auto" and not (isinstance(window, int) and window >= 1):
            raise ValueError(f'window must be "auto" or a whole number from 1 on, got {window!r}')
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"inference steps must be at least 1, got {self.steps}")
        if self.eta is not None and self.name not in ("asd", "ddim"):
            raise ValueError(f'eta applies to the samplers "ddim" and "asd", not to {self.name!r}')
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be positive, got {self.tolerance}")

    def schedule(self, schedule: Schedule) -> Schedule:
        """The chain that this sampler runs on the network that ``schedule`` was trained for.

        Raises:
            ValueError: more steps than were trained, or ASD on a chain without noise.
        """
        if self.name == "ddim":
            schedule = schedule.ddim(
                self.steps or min(10, schedule.config.num_steps), self.eta or 0.0
            )
        elif self.eta is not None:
            schedule = schedule.ddim(self.steps or schedule.num_steps, self.eta)
        elif self.steps is not None:
            schedule = schedule.respaced(self.steps)
        if self.name == "asd" and not bool((schedule.sigma[:-1] > 0).all()):
            raise ValueError(
                "ASD needs noise in every step but the last, and DDIM with eta=0 has none: there "
                'is nothing to couple. Use sampler="ddim", or eta above 0, or the DDPM itself'
            )
        return schedule


def sample(
    denoiser: Network,
    schedule: Schedule,
    *,
    shape: tuple[int, ...],
    cond: Tensor | None = None,
    sampler: str = "asd",
    draft: str = "secant",
    calls_per_round: int = 1,
    window: int | str = "auto",
    steps: int | None = None,
    eta: float | None = None,
    tolerance: float = 0.1,
    generator: Streams = None,
    calibration: Calibration | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Result:
    """Draw B independent samples from a trained diffusion model.

    ``sampler="asd"`` returns samples with exactly the law of ``sampler="ddpm"`` (up to
    floating-point arithmetic) for fewer sequential network calls; the same seed does not give
    the same sample.

    Args:
        denoiser: ``denoiser(x, timesteps, cond)`` → what the network predicts; x (N, *shape[1:]),
            timesteps (N,) int64, cond with N rows or None. It must treat rows independently.
        schedule: noise schedule the network was trained for.
        shape: (B, …): chains, and the shape of one sample.
        cond: (B, …) condition of each chain.
        sampler, draft, calls_per_round, window, steps, eta, tolerance: see ``SamplerConfig``.
        generator: one generator, from which each chain's own stream is seeded, or B of them.
        calibration: slopes, acceptance and costs from earlier calls (``result.calibration`` or
            :func:`calibrate`); it is updated. Without one, "auto" means a window of 16.
        device: of the chains (default: that of ``cond``, else of the generator, else the CPU).
        dtype: of the chains.

    Raises:
        ValueError: an unknown option, or options that exclude each other.
        NonFiniteError: the network returned a NaN or an infinity.

    Source: Hu, Das, Sadigh & Anari, ICML 2025, arXiv 2505.03983.
    """
    config = SamplerConfig(sampler, draft, calls_per_round, window, steps, eta, tolerance)
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(
            f"shape must be (chains, sizes of one sample …), all positive; got {shape}"
        )
    if cond is not None and len(cond) != shape[0]:
        raise ValueError(f"cond must have {shape[0]} rows, one for each chain; got {len(cond)}")
    if device is None:
        device = cond.device if cond is not None else getattr(generator, "device", "cpu")
    chain = config.schedule(schedule)
    like = torch.empty((shape[0], torch.Size(shape[1:]).numel()), device=device, dtype=dtype)
    noise = draw_noise(streams(generator, shape[0]), chain.num_steps, like)
    calibration = calibration or Calibration()
    with torch.inference_mode():
        runner = Denoiser(denoiser, chain, tuple(shape[1:]), cond, like)
        x, stats = sample_with(config, runner, chain, noise, calibration)
    return Result(x.view(shape), stats, calibration)


def sample_with(
    config: SamplerConfig,
    denoiser: Denoiser,
    schedule: Schedule,
    noise: Noise,
    calibration: Calibration,
) -> tuple[Tensor, Stats]:
    """Run a sampler on noise that is given. ``schedule`` is ``config.schedule(trained)``."""
    if config.name in ("ddpm", "ddim"):
        return sample_ddpm(denoiser, schedule, noise, config.name)
    batch, num_steps = noise.log_uniform.shape
    if config.name == "paradigms":
        wide = PARADIGMS_WINDOW if config.window == "auto" else int(config.window)
        return sample_paradigms(denoiser, schedule, noise, min(wide, num_steps), config.tolerance)
    window = config.window
    width = calibration.window(batch, num_steps) if window == "auto" else int(window)
    if window == "auto" and width == 1:
        return sample_ddpm(denoiser, schedule, noise, "asd")
    return sample_asd(
        denoiser,
        schedule,
        noise,
        config.draft,
        config.calls_per_round,
        min(width, num_steps),
        calibration,
    )


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
    **options: object,
) -> Calibration:
    """Learn slopes and acceptance from ``chunks`` throw-away calls, and time the network.

    Args:
        denoiser, schedule, shape, cond, generator: as for :func:`sample`; conditions should be
            typical. chunks: calls of :func:`sample` with window ``window``.
        measure_costs: time the network at the batch sizes of the windows, for ``window="auto"``.
        progress: called with the number of chunks done.
        options: further arguments of :func:`sample`.

    Returns:
        A calibration for the sampler, the number of steps and the network it was made with.
    """
    calibration = Calibration()
    for done in range(chunks):
        sample(
            denoiser,
            schedule,
            shape=shape,
            cond=cond,
            window=window,
            generator=generator,
            calibration=calibration,
            **options,  # type: ignore[arg-type]
        )
        if done == 0 and chunks > 1:
            calibration.forget_acceptance()
        progress(done + 1)
    if measure_costs:
        place = {key: options[key] for key in ("device", "dtype") if options.get(key)}
        condition = None if cond is None else cond[:1]
        call = network_call(denoiser, schedule, shape[1:], condition, **place)  # type: ignore[arg-type]
        calibration.measure_costs(shape[0], schedule.num_steps, call)
    return calibration


def network_call(
    denoiser: Network,
    schedule: Schedule,
    shape: tuple[int, ...],
    cond: Tensor | None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Callable[[int], None]:
    """A function that runs the network once on a given number of rows, and waits for it.

    ``cond``: (1, …) or None.
    """
    device = cond.device if cond is not None else torch.device(device)
    timestep = schedule.timesteps[:1].to(device)

    @torch.inference_mode()
    def call(rows: int) -> None:
        x = torch.randn((rows, *shape), device=device, dtype=dtype)
        condition = None if cond is None else cond.expand(rows, *cond.shape[1:]).contiguous()
        denoiser(x, timestep.expand(rows), condition)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return call
