"""The arithmetic around a network call, which may be done in several ways."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from asd_policy.chains import Chains, Tables
from asd_policy.denoiser import Denoiser
from asd_policy.drafts import Form


class Kernels(Protocol):
    """A module of :mod:`asd_policy.engine.kernels`; each is held equal to ``torch`` there."""

    def propose(
        self, chains: Chains, denoiser: Denoiser, form: Form, width: int, /
    ) -> tuple[Tensor, Tensor]:
        """:func:`asd_policy.drafts.propose`."""

    def observe(
        self, chains: Chains, denoiser: Denoiser, points: Tensor, prediction: Tensor,
        form: Form, /,
    ) -> None:  # fmt: skip
        """:func:`asd_policy.samplers.asd.observe`, of the current point."""

    def verify(
        self, chains: Chains, denoiser: Denoiser, points: Tensor, drafts: Tensor,
        prediction: Tensor, form: Form, /,
    ) -> None:  # fmt: skip
        """:func:`asd_policy.samplers.asd.verify`."""

    def walk(self, chains: Chains, denoiser: Denoiser, width: int, /) -> tuple[Tensor, Tensor]:
        """:func:`asd_policy.rejoin.walk`."""

    def settle(
        self, chains: Chains, denoiser: Denoiser, points: Tensor, steps: Tensor,
        prediction: Tensor, form: Form, /,
    ) -> None:  # fmt: skip
        """:func:`asd_policy.samplers.asd.settle`."""

    def advance(
        self, x: Tensor, prediction: Tensor, noise: Tensor, n: Tensor, bad: Tensor,
        tables: Tables, denoiser: Denoiser, /,
    ) -> None:  # fmt: skip
        """:func:`asd_policy.samplers.ddpm.advance`."""
