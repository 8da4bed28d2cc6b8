"""Functions that the kernels of ``triton_source`` and ``triton_rejoin`` are made of."""

import triton
import triton.language as tl

PADDED = tl.constexpr(8)  # secant pairs, padded to a power of two


@triton.jit
def clipped(x0, CLIP: tl.constexpr):
    """Clip to ±CLIP; NaN stays NaN."""
    if CLIP is not None:
        edge = tl.full(x0.shape, CLIP, x0.dtype)
        x0 = tl.where(x0 > edge, edge, tl.where(x0 < -edge, -edge, x0))
    return x0


@triton.jit
def bounded(draft, base, CLIP: tl.constexpr):
    """Clipped; the memory's where a correction overflowed: ``drafts.finite``."""
    draft = clipped(draft, CLIP)
    return tl.where(tl.abs(draft) < float("inf"), draft, base)


@triton.jit
def reflected(noise, delta, inner, square, EQUAL: tl.constexpr):
    """The noise mirrored along δ: ``coupling.reflect``."""
    apart = (square > EQUAL * EQUAL) & (square < float("inf"))
    return tl.where(apart, noise - 2.0 * (inner / square) * delta, noise)


@triton.jit
def predicted(here, said, u, v, CLIP: tl.constexpr):
    """Clipped x̂0 = u·x + v·prediction; not finite where the prediction is not."""
    x0 = u * here + v * said
    if CLIP is not None:  # which would hide an infinity
        x0 = tl.where(tl.abs(said) < float("inf"), clipped(x0, CLIP), float("nan"))
    return x0


@triton.jit
def row_of(ptr, row, column, D: tl.constexpr):
    """One row of a (…, D) tensor, zero beyond D."""
    return tl.load(ptr + row * D + column, mask=column < D, other=0.0)


@triton.jit
def secants_of(
    displacement_ptr, residual_ptr, chain, column,
    D: tl.constexpr, PAIRS: tl.constexpr, RIDGE: tl.constexpr,
):  # fmt: skip
    """A chain's Δx and (Δx Δxᵀ + λI)⁻¹R, both (PADDED, BLOCK).

    Gauss–Jordan without a choice of pivots: the matrix is positive definite. Padded pairs are
    zero.
    """
    pair = tl.arange(0, PADDED)
    index = (chain * PAIRS + pair[:, None]) * D + column[None, :]
    inside = (pair[:, None] < PAIRS) & (column[None, :] < D)
    stored = tl.load(displacement_ptr + index, mask=inside, other=0.0)
    solution = tl.load(residual_ptr + index, mask=inside, other=0.0)
    line, across = pair[:, None], pair[None, :]
    gram = tl.where(line == across, tl.full((PADDED, PADDED), RIDGE, stored.dtype), 0.0)
    for j in tl.static_range(PAIRS):
        other = row_of(displacement_ptr, chain * PAIRS + j, column, D)
        inner = tl.sum(stored * other[None, :], axis=1)
        gram += tl.where(across == j, inner[:, None], 0.0)
    for k in tl.static_range(PAIRS):
        here = tl.sum(tl.where(line == k, gram, 0.0), axis=0)  # row k
        there = tl.sum(tl.where(line == k, solution, 0.0), axis=0)
        factor = tl.sum(tl.where(across == k, gram, 0.0), axis=1)  # column k
        pivot = tl.sum(tl.where(pair == k, here, 0.0), axis=0)
        here, there = here / pivot, there / pivot
        gram = tl.where(line == k, here[None, :], gram - factor[:, None] * here[None, :])
        solution = tl.where(line == k, there[None, :], solution - factor[:, None] * there[None, :])
    return stored, solution
