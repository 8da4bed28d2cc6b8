"""Samples that are known to be equal to the reference's or different from it.

A test that never rejects proves nothing. Each coupling here has one thing wrong, and it is one
that would pass unnoticed: chunks look like chunks, and calls are saved.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace

import torch
from torch import Tensor

from asd_policy.chains import Chains
from asd_policy.denoiser import Denoiser
from asd_policy.drafts import Form, Scan
from asd_policy.engine import Engine
from asd_policy.engine.kernels import torch as kernels
from asd_policy.eval.studies.verify.draws import Role
from asd_policy.eval.studies.verify.subjects import Subject
from asd_policy.samplers.asd import AutospeculativeDecoding
from asd_policy.samplers.config import SamplerConfig
from asd_policy.samplers.result import Noise
from asd_policy.schedule import Schedule

Propose = Callable[[Chains, Denoiser, Form, int], tuple[Tensor, Tensor]]
PEEK = 0.3  # standard deviations of a step by which a draft follows that step's noise


def control_roles(subject: Subject, reference: SamplerConfig) -> Sequence[Role]:
    """What is sampled besides. The first is the reference again; the others have other
    distributions."""
    steps = min(10, subject.schedule.config.num_steps)
    whole = subject.schedule.num_steps
    chain = SamplerConfig("asd", "frozen", 1, whole, reference.steps, reference.eta)
    paper = replace(chain, window=32)
    return [
        Role(f"{reference.name}-again", reference),
        Role(f"ddim-{steps}", SamplerConfig("ddim", steps=steps)),
        Role("asd-always-accepting", chain, change=_always_accepted),
        Role("asd-peeking", paper, make_engine=lambda c: WrongEngine(subject, c, peeking)),
        Role("asd-next-memory", replace(paper, draft="memory"),
             make_engine=lambda c: WrongEngine(subject, c, next_steps_memory)),
    ]  # fmt: skip


def _always_accepted(noise: Noise) -> Noise:
    """Uniforms so small that every draft is accepted, however wrong."""
    return replace(noise, log_uniform=torch.full_like(noise.log_uniform, -1e30))


def peeking(chains: Chains, denoiser: Denoiser, form: Form, width: int) -> tuple[Tensor, Tensor]:
    """Drafts that know the noise of the step that they are for."""
    _, drafts = kernels.propose(chains, denoiser, form, width)
    steps = chains.steps(width)
    noise = chains.noise_of(steps)
    # chains.tables.delta is a/σ, and 0 where no draft is decided on.
    scale = chains.tables.delta[steps].unsqueeze(2)
    drafts = drafts - torch.where(scale > 0, PEEK * noise / scale, 0.0)
    return Scan(chains, noise)(drafts), drafts


def next_steps_memory(
    chains: Chains, denoiser: Denoiser, form: Form, width: int
) -> tuple[Tensor, Tensor]:
    """Drafts a step from the memory of the one after it, which was made from its noise."""
    shifted, step = copy.copy(chains), torch.arange(chains.value.shape[1], device="cpu")
    usable = (step.to(chains.last.device) < chains.last.unsqueeze(1)).unsqueeze(2)
    shifted.value = torch.where(usable, chains.value.roll(-1, 1), chains.value)
    return kernels.propose(shifted, denoiser, form, width)


class WrongEngine(Engine):
    """The eager engine with drafts of another kind."""

    lean = False  # next_steps_memory looks up memory by its steps

    def __init__(self, subject: Subject, chain: Schedule, wrong: Propose) -> None:
        like = subject.conditions
        super().__init__(
            subject.network(chain), chain, subject.shape, like.device, like.dtype, kernels="torch"
        )
        self._wrong = SimpleNamespace(**{**vars(kernels), "propose": wrong})

    def _run(
        self, noise: Noise, cond: Tensor | None, form: Form, window: int
    ) -> AutospeculativeDecoding:
        run = super()._run(noise, cond, form, window)
        run.kernels = self._wrong
        return run
