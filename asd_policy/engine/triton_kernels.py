"""The arithmetic of a round in one kernel launch before the network call and one after it.

Launches work in place on a batch's :class:`~asd_policy.chains.Chains`, one program per chain. They
neither synchronize nor branch on device values, and addresses stay the same, so that a round can
be captured in a CUDA graph. The PyTorch form (:class:`asd_policy.samplers.asd.Kernels`) is the
reference; tests hold the two equal.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from asd_policy.chains import PAIRS, RIDGE, Chains, Tables
from asd_policy.coupling import EQUAL
from asd_policy.denoiser import Denoiser
from asd_policy.samplers.asd import Kernels

DTYPES = (torch.float32, torch.float64)
TILE_NUMBERS = 1024  # that a program verifies at a time: as many rows of D as fit


def available() -> str | None:
    """Why the kernels cannot be used here, or None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if _interpreted() or torch.cuda.is_available():
        return None
    return "triton needs a CUDA device, and there is none"


def _interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which takes tensors on the CPU too."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def _source() -> Any:
    """The kernels. Triton is imported here, so that the package does not need it."""
    return importlib.import_module("asd_policy.engine.triton_source")


class TritonKernels(Kernels):
    """Fused kernels for float32 or float64 chains.

    Args:
        source: the module that holds the kernels.

    Raises:
        RuntimeError: on construction, where :func:`available` names a reason.
    """

    def __init__(self) -> None:
        reason = available()
        if reason is not None:
            raise RuntimeError(f"Triton kernels cannot be used: {reason}")
        self._source = _source()

    def propose(
        self, chains: Chains, denoiser: Denoiser, draft: str, width: int
    ) -> tuple[Tensor, Tensor]:
        """:func:`asd_policy.drafts.propose` in one launch."""
        assert 1 <= width <= chains.window, (width, chains.window)
        _check(chains.x)
        points = chains.x.new_empty(chains.batch, width + 1, chains.dim)
        drafts = chains.x.new_empty(chains.batch, width, chains.dim)
        tables, block = chains.tables, _block(chains.dim)
        with torch.cuda.device_of(chains.x):
            self._source.propose_kernel[(chains.batch,)](
                chains.x, chains.n, chains.last, chains.noise, chains.value, chains.point,
                chains.displacement, chains.residual, chains.slopes,
                tables.a, tables.b, tables.sigma, points, drafts, width, tables.rows,
                D=chains.dim, BLOCK=block, FROZEN=draft == "frozen",
                CORRECT=draft in ("slope", "secant"), SECANT=draft == "secant",
                CLIP=denoiser.clip_range, PAIRS=PAIRS, RIDGE=RIDGE, num_warps=_row_warps(block),
            )  # fmt: skip
        return points, drafts

    def observe(
        self, chains: Chains, denoiser: Denoiser, points: Tensor, prediction: Tensor,
        ahead: int, secants: bool, learn: bool,
    ) -> None:  # fmt: skip
        """:func:`asd_policy.samplers.asd.observe` in one launch."""
        self._verify(chains, denoiser, points, None, prediction, ahead, secants, learn)

    def verify(
        self, chains: Chains, denoiser: Denoiser, points: Tensor, drafts: Tensor,
        prediction: Tensor, ahead: int, secants: bool, learn: bool,
    ) -> None:  # fmt: skip
        """:func:`asd_policy.samplers.asd.verify` in one launch."""
        self._verify(chains, denoiser, points, drafts, prediction, ahead, secants, learn)

    def _verify(
        self, chains: Chains, denoiser: Denoiser, points: Tensor, drafts: Tensor | None,
        prediction: Tensor, ahead: int, secants: bool, learn: bool,
    ) -> None:  # fmt: skip
        """Observe; and couple, if there are drafts."""
        _check(chains.x)
        width = prediction.shape[1]
        assert width <= chains.window, (width, chains.window)
        points, prediction = points.contiguous(), prediction.contiguous()
        tables, block = chains.tables, _block(chains.dim)
        tile = max(1, min(TILE_NUMBERS // block, _power_of_two(width)))
        with torch.cuda.device_of(chains.x):
            self._source.verify_kernel[(chains.batch,)](
                chains.x, chains.n, chains.last, chains.fresh.view(torch.uint8), chains.bad,
                chains.pushed, chains.calls, chains.evaluations, chains.noise, chains.log_uniform,
                chains.value, chains.point, chains.displacement, chains.residual, chains.slopes,
                chains.accepted, chains.decided, chains.cross, chains.square, chains.learned,
                denoiser.uv, tables.a, tables.b, tables.sigma, tables.delta,
                points, points if drafts is None else drafts.contiguous(), prediction,
                width, tables.rows, tables.num_steps, D=chains.dim, BLOCK=block, TILE=tile,
                AHEAD=ahead, COUPLE=drafts is not None, SECANTS=secants, LEARN=learn,
                CLIP=denoiser.clip_range, PAIRS=PAIRS, EQUAL=EQUAL,
                num_warps=_tile_warps(block * tile),
            )  # fmt: skip


def advance_sequential(
    x: Tensor,
    prediction: Tensor,
    noise: Tensor,
    n: Tensor,
    bad: Tensor,
    tables: Tables,
    denoiser: Denoiser,
) -> None:
    """One step of :func:`asd_policy.samplers.ddpm.sample_ddpm` for every chain, in one launch.

    x ← a[n]·x̂0 + b[n]·x + σ[n]·ξ[:, n], then n ← n + 1. A chain whose counter has reached K stays
    as it is.

    Args:
        x: (B, D) points, changed in place.
        prediction: (B, D) or (B, …), the network's at x and n, unchecked.
        noise: (B, K or more, D) ξ.
        n: (B,) int64 steps taken, one counter per chain, changed in place. They are what
            :meth:`Denoiser.predict` takes as its steps.
        bad: (B,) int64 first step at which a prediction was not finite (−1: none), changed in
            place.

    Raises:
        RuntimeError: where :func:`available` names a reason.
    """
    reason = available()
    if reason is not None:
        raise RuntimeError(f"Triton kernels cannot be used: {reason}")
    _check(x)
    batch, dim = x.shape
    assert n.shape == bad.shape == (batch,), (n.shape, bad.shape, batch)
    assert noise.is_contiguous() and noise.shape[1] >= tables.num_steps
    block = _block(dim)
    with torch.cuda.device_of(x):
        _source().advance_kernel[(batch,)](
            x, prediction.contiguous(), noise, n, bad, denoiser.uv,
            tables.a, tables.b, tables.sigma, noise.shape[1], tables.num_steps,
            D=dim, BLOCK=block, CLIP=denoiser.clip_range, num_warps=_row_warps(block),
        )  # fmt: skip


def _check(x: Tensor) -> None:
    assert x.is_contiguous(), "kernels work in place on contiguous points"
    if x.dtype not in DTYPES:
        raise ValueError(f"Triton kernels expect float32 or float64 chains; got {x.dtype}")


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _block(dim: int) -> int:
    return _power_of_two(dim)


def _row_warps(block: int) -> int:
    """Warps for a row of D and eight secants: four numbers of each to a thread."""
    return max(1, min(8, block // 128))


def _tile_warps(numbers: int) -> int:
    """Warps for a tile: eight numbers to a thread."""
    return max(1, min(8, numbers // 256))
