"""How network calls grow with the number of steps, on a mixture whose denoiser is exact.

No training and no clock: the same figures on every machine, up to rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asd_policy.denoiser import Network
from asd_policy.eval.studies.bench.summary import standard_error
from asd_policy.sampler import Sampler
from asd_policy.samplers.config import SamplerConfig
from asd_policy.samplers.result import Noise, streams
from asd_policy.schedule import Schedule

Json = dict[str, Any]
STEPS = (50, 100, 200, 400, 800)
FORMS = ("asd-paper", "asd-memory", "asd")
DIM, MODES, SPREAD, SCALE = 112, 32, 0.4, 0.05


def mixture_network(schedule: Schedule) -> Network:
    """The exact ε-prediction for 32 equally likely Gaussians in 112 dimensions.

    Means ~ N(0, SPREAD²), standard deviation SCALE: as many numbers as a chunk of 16 actions of 7,
    and about the spread of normalized actions. E[x0 | x] is the posterior mean of each mode, by
    its posterior weight (closed form).
    """
    means = torch.from_numpy(np.random.default_rng(7).normal(size=(MODES, DIM)) * SPREAD)

    def predict(x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
        bar = schedule.alphas_cumprod[timesteps].to(x).unsqueeze(1)
        signal, centres = bar.sqrt(), means.to(x)
        variance = bar * SCALE**2 + 1 - bar  # of x within a mode
        logits = (signal * (x @ centres.mT) - 0.5 * bar * centres.square().sum(1)) / variance
        centre = logits.softmax(-1) @ centres
        x0 = centre + signal * SCALE**2 / variance * (x - signal * centre)
        return (x - signal * x0) / (1 - bar).sqrt()

    return predict


def calls_against_steps(
    form: str,
    steps: Sequence[int] = STEPS,
    seeds: int = 8,
    chains: int = 16,
    say: Callable[[str], None] = lambda text: None,
    deadline: float = float("inf"),
) -> Json | None:
    """Calls a chunk of a form by K, θ = K, with the least-squares exponent on log axes; None if the
    deadline, of ``time.monotonic()``, came first.

    Args:
        seeds: independent repetitions, of ``chains`` chains each; their spread gives the error.
    """
    rows = []
    for k in steps:
        if time.monotonic() > deadline:
            return None
        rows.append(_calls(form, k, seeds, chains))
    draws = np.array(rows)  # (steps, seeds)
    slopes = np.array([exponent(steps, column) for column in draws.T])
    power = exponent(steps, draws.mean(1))
    say(f"  {form}: {', '.join(f'{v:.1f}' for v in draws.mean(1))} calls, about K^{power:.3f}")
    return {
        "form": form,
        "steps": list(steps),
        "calls": draws.mean(1).tolist(),
        "standard_error": [standard_error(row) for row in draws],
        "exponent": power,
        "exponent_standard_error": standard_error(slopes),
        "seeds": seeds,
        "chains_per_seed": chains,
    }


def exponent(steps: Sequence[int], calls: np.ndarray) -> float:
    """p of calls ∝ K^p by least squares of logarithms."""
    return float(np.polyfit(np.log(steps), np.log(calls), 1)[0])


def _calls(form: str, steps: int, seeds: int, chains: int) -> list[float]:
    """Mean calls of each seed, with slopes learned from one throw-away repetition."""
    schedule = Schedule.ddpm(steps)
    sampler = Sampler(
        mixture_network(schedule), schedule, (DIM,), SamplerConfig(form, window=steps)
    )

    def noise(seed: int) -> Noise:
        return sampler.noise(streams(torch.Generator("cpu").manual_seed(seed), chains))

    sampler.calibrate([(noise(0), None)], chunks=1)
    sampler.freeze()
    drawn = (sampler.draw(noise(seed))[1] for seed in range(1, seeds + 1))
    return [float(stats.calls.float().mean()) for stats in drawn]
