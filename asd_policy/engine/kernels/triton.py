"""The arithmetic of a round in one kernel launch before the network call and one after it.

Launches work in place on a batch's :class:`~asd_policy.chains.Chains`, one program per chain. They
neither synchronize nor branch on device values, and addresses stay the same, so that a round can
be captured in a CUDA graph. :mod:`asd_policy.engine.kernels.torch` is the reference; tests hold the
two equal. For float32 and float64 chains on a CUDA device, where :func:`available` names no reason.
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
from asd_policy.drafts import Form
from asd_policy.errors import InputError

DTYPES = (torch.float32, torch.float64)
TILE_BYTES = 16384  # that a program verifies at a time: as many rows of D as fit


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


def _source(name: str = "triton_source") -> Any:
    """The kernels. Triton is imported here, so that the package does not need it."""
    return importlib.import_module(f"asd_policy.engine.{name}")


def propose(chains: Chains, denoiser: Denoiser, form: Form, width: int) -> tuple[Tensor, Tensor]:
    """:func:`asd_policy.drafts.propose` in one launch."""
    assert 1 <= width <= chains.window, (width, chains.window)
    _check(chains.x)
    points = chains.x.new_empty(chains.batch, width + 1, chains.dim)
    drafts = chains.x.new_empty(chains.batch, width, chains.dim)
    tables, block = chains.tables, _power_of_two(chains.dim)
    with torch.cuda.device_of(chains.x):
        _source().propose_kernel[(chains.batch,)](
            chains.x, chains.n, chains.last, chains.noise, chains.value, chains.point,
            chains.displacement, chains.residual, chains.slopes,
            tables.a, tables.b, tables.sigma, points, drafts, width, tables.rows,
            D=chains.dim, BLOCK=block, FROZEN=form.draft == "frozen",
            CORRECT=form.draft in ("slope", "secant"), SECANT=form.secants,
            CLIP=denoiser.clip_range, PAIRS=PAIRS, RIDGE=RIDGE,
            num_warps=_row_warps(block, chains.x),
        )  # fmt: skip
    return points, drafts


def observe(
    chains: Chains, denoiser: Denoiser, points: Tensor, prediction: Tensor, form: Form
) -> None:
    """:func:`asd_policy.samplers.asd.observe` in one launch."""
    _verify(chains, denoiser, points, None, prediction, 0, form)


def verify(
    chains: Chains,
    denoiser: Denoiser,
    points: Tensor,
    drafts: Tensor,
    prediction: Tensor,
    form: Form,
) -> None:
    """:func:`asd_policy.samplers.asd.verify` in one launch."""
    _verify(chains, denoiser, points, drafts, prediction, form.ahead, form)


def _verify(
    chains: Chains, denoiser: Denoiser, points: Tensor, drafts: Tensor | None, prediction: Tensor,
    ahead: int, form: Form,
) -> None:  # fmt: skip
    """Observe; and couple, if there are drafts."""
    _check(chains.x)
    width = prediction.shape[1]
    assert width <= chains.window, (width, chains.window)
    points, prediction = points.contiguous(), prediction.contiguous()
    tables, block = chains.tables, _power_of_two(chains.dim)
    tile = _tile(block, width, chains.x)
    with torch.cuda.device_of(chains.x):
        _source().verify_kernel[(chains.batch,)](
            chains.x, chains.n, chains.last, chains.fresh.view(torch.uint8), chains.bad,
            chains.pushed, chains.calls, chains.evaluations, chains.noise, chains.log_uniform,
            chains.value, chains.point, chains.displacement, chains.residual, chains.slopes,
            chains.accepted, chains.decided, chains.cross, chains.square, chains.learned,
            denoiser.uv, tables.a, tables.b, tables.sigma, tables.delta,
            points, points if drafts is None else drafts.contiguous(), prediction,
            width, tables.rows, tables.num_steps, D=chains.dim, BLOCK=block, TILE=tile,
            AHEAD=ahead, COUPLE=drafts is not None, SECANTS=form.secants, LEARN=form.learn,
            CLIP=denoiser.clip_range, PAIRS=PAIRS, EQUAL=EQUAL,
            num_warps=_tile_warps(block * tile, chains.x),
        )  # fmt: skip


def walk(chains: Chains, denoiser: Denoiser, width: int) -> tuple[Tensor, Tensor]:
    """:func:`asd_policy.rejoin.walk` in one launch."""
    assert 1 <= width <= chains.window, (width, chains.window)
    _check(chains.x)
    paths, tables, block = chains.paths, chains.tables, _power_of_two(chains.dim)
    assert paths is not None
    points = chains.x.new_zeros(chains.batch, width, chains.dim)
    steps = chains.n.new_full((chains.batch, width), tables.num_steps)
    with torch.cuda.device_of(chains.x):
        _source("triton_rejoin").walk_kernel[(chains.batch,)](
            chains.n, chains.last, paths.end, chains.noise, chains.log_uniform, chains.value,
            chains.point, chains.displacement, chains.residual, chains.slopes,
            tables.a, tables.b, tables.sigma, paths.point, paths.mean, paths.draft,
            paths.met.view(torch.uint8), points, steps, width, tables.rows, tables.num_steps,
            D=chains.dim, BLOCK=block, CLIP=denoiser.clip_range, PAIRS=PAIRS, RIDGE=RIDGE,
            EQUAL=EQUAL, LEAST=torch.finfo(points.dtype).eps,
            num_warps=_row_warps(block, chains.x),
        )  # fmt: skip
    return points, steps


def settle(
    chains: Chains, denoiser: Denoiser, points: Tensor, steps: Tensor, prediction: Tensor,
    form: Form,
) -> None:  # fmt: skip
    """:func:`asd_policy.samplers.asd.settle` in one launch."""
    _check(chains.x)
    width, paths, tables = prediction.shape[1], chains.paths, chains.tables
    assert paths is not None
    assert width <= chains.window, (width, chains.window)
    block = _power_of_two(chains.dim)
    tile = _tile(block, width, chains.x)
    with torch.cuda.device_of(chains.x):
        _source("triton_rejoin").settle_kernel[(chains.batch,)](
            chains.x, chains.n, chains.last, paths.end, chains.bad,
            chains.pushed, chains.calls, chains.evaluations, chains.noise, chains.log_uniform,
            chains.value, chains.point, chains.displacement, chains.residual, chains.slopes,
            chains.accepted, chains.decided, chains.cross, chains.square, chains.learned,
            denoiser.uv, tables.a, tables.b, tables.sigma, tables.delta,
            paths.point, paths.draft, paths.met.view(torch.uint8),
            points.contiguous(), steps.contiguous(), prediction.contiguous(),
            width, tables.rows, tables.num_steps, D=chains.dim, BLOCK=block, TILE=tile,
            SECANTS=form.secants, LEARN=form.learn, CLIP=denoiser.clip_range, PAIRS=PAIRS,
            EQUAL=EQUAL, num_warps=_tile_warps(block * tile, chains.x),
        )  # fmt: skip


def advance(
    x: Tensor,
    prediction: Tensor,
    noise: Tensor,
    n: Tensor,
    bad: Tensor,
    tables: Tables,
    denoiser: Denoiser,
) -> None:
    """A step of :func:`asd_policy.samplers.ddpm.sample_ddpm` for every chain, in one launch.

    x ← a[n]·x̂0 + b[n]·x + σ[n]·ξ[:, n] + c[n]·prediction, then n ← n + 1. Chains at their end
    stay as they are.

    Args:
        x: (B, D) points, changed in place.
        prediction: (B, D), the network's at x and n, unchecked.
        noise: (B, K or more, D) ξ, contiguous.
        n: (B,) int64 steps taken, a counter for each chain, changed in place. Before the
            launch they are what :meth:`Denoiser.predict` takes as steps (below K + 2).
        bad: (B,) int64 first step at which a prediction was not finite (−1: none), changed
            in place.
    """
    _check(x)
    (batch, dim), block = x.shape, _power_of_two(x.shape[1])
    assert n.shape == bad.shape == (batch,), (n.shape, bad.shape, batch)
    assert noise.is_contiguous(), "noise is read where it lies"
    assert noise.shape[0] == batch, (noise.shape, batch)
    assert noise.shape[1] >= tables.num_steps, (noise.shape, tables.num_steps)
    with torch.cuda.device_of(x):
        _source().advance_kernel[(batch,)](
            x, prediction.contiguous(), noise, n, bad, denoiser.uv,
            tables.a, tables.b, tables.sigma, tables.c, noise.shape[1], tables.num_steps,
            D=dim, BLOCK=block, CLIP=denoiser.clip_range, num_warps=_row_warps(block, x),
        )  # fmt: skip


def _check(x: Tensor) -> None:
    assert x.is_contiguous(), "kernels work in place on contiguous points"
    if x.dtype not in DTYPES:
        raise InputError(f"Triton kernels expect float32 or float64 chains; got {x.dtype}")
    if not x.is_cuda and not _interpreted():
        raise InputError(f"Triton kernels expect chains on a CUDA device; got {x.device}")


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _tile(block: int, width: int, like: Tensor) -> int:
    """Steps of the window that a program verifies at a time."""
    return max(1, min(TILE_BYTES // (block * like.element_size()), _power_of_two(width)))


def _row_warps(block: int, like: Tensor) -> int:
    """Warps for a row of D and those of the secants: 16 bytes of each to a thread."""
    return _warps(block * like.element_size() // 16)


def _tile_warps(numbers: int, like: Tensor) -> int:
    """Warps for a tile: 32 bytes to a thread."""
    return _warps(numbers * like.element_size() // 32)


def _warps(threads: int) -> int:
    return max(1, min(16, threads // 32))
