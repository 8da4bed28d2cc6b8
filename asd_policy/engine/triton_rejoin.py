"""Triton source of rounds that rejoin: ``asd_policy.rejoin.walk`` and ``samplers.asd.settle``.

One program per chain, as in :mod:`asd_policy.engine.triton_source`, whose rules hold here too.
"""

import triton
import triton.language as tl

from asd_policy.engine.triton_parts import bounded, reflected, row_of, secants_of
from asd_policy.engine.triton_source import POSITIONS, blame, couple, take_in


@triton.jit
def left_over(log_uniform, ratio, accepted, LEAST: tl.constexpr):
    """The uniform that remains of one that has decided: ``coupling.left_over``."""
    log_p = tl.where(ratio < float("inf"), tl.minimum(ratio, 0.0), -float("inf"))
    u, p = tl.exp(log_uniform), tl.exp(log_p)
    above = (u - p) / tl.maximum(1.0 - p, LEAST)
    above = tl.minimum(tl.maximum(above, LEAST), 1.0)
    return tl.where(accepted, log_uniform - log_p, tl.log(above))


@triton.jit(do_not_specialize=["width", "rows", "num_steps"])
def walk_kernel(
    n_ptr, last_ptr, end_ptr, noise_ptr, log_uniform_ptr, value_ptr, point_ptr,
    displacement_ptr, residual_ptr, slopes_ptr, a_ptr, b_ptr, sigma_ptr,
    path_ptr, mean_ptr, draft_ptr, met_ptr, points_ptr, steps_ptr, width, rows, num_steps,
    D: tl.constexpr, BLOCK: tl.constexpr, CLIP: tl.constexpr, PAIRS: tl.constexpr,
    RIDGE: tl.constexpr, EQUAL: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    """Points to evaluate (B, W, D) and their steps (B, W), which were filled with 0 and K."""
    chain = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    n, last = tl.load(n_ptr + chain), tl.load(last_ptr + chain)
    row = chain * rows
    stored, coefficients = secants_of(
        displacement_ptr, residual_ptr, chain, column, D, PAIRS, RIDGE
    )
    x, met = row_of(path_ptr, row + n, column, D), tl.load(met_ptr + row + n)
    draft = row_of(value_ptr, row + tl.maximum(last, 0), column, D)  # where nothing is known
    m, spent, going = n, n * 0, n < num_steps
    while going:
        new = met == 0
        to = chain * width + spent
        tl.store(points_ptr + to * D + column, x, mask=column < tl.where(new, D, 0))
        tl.store(steps_ptr + to, m, mask=new)
        spent += tl.where(new, 1, 0)
        at, proposing = row + m, m < num_steps - 1
        known = (m <= last) & proposing
        noise, then = row_of(noise_ptr, at, column, D), row_of(mean_ptr, at, column, D)
        end_then, met_then = row_of(path_ptr, at + 1, column, D), tl.load(met_ptr + at + 1)
        uniform = tl.load(log_uniform_ptr + at)
        a, b, sigma = tl.load(a_ptr + m), tl.load(b_ptr + m), tl.load(sigma_ptr + m)
        z = x - row_of(point_ptr, at, column, D)
        share = tl.sum(z[None, :] * stored, axis=1)
        base = row_of(value_ptr, at, column, D)
        corrected = base + tl.load(slopes_ptr + m) * z
        corrected += tl.sum(share[:, None] * coefficients, axis=0)
        draft = tl.where(known, bounded(corrected, base, CLIP), draft)
        mean = a * draft + b * x
        delta = tl.where(known, (then - mean) / tl.where(proposing, sigma, 1.0), 0.0)
        inner, square = tl.sum(noise * delta, axis=0), tl.sum(delta * delta, axis=0)
        ratio = -(inner + 0.5 * square)
        back = known & (uniform <= ratio) & (ratio < float("inf"))  # false for a NaN
        found = tl.where(back, noise + delta, reflected(noise, delta, inner, square, EQUAL))
        x = tl.where(back, end_then, mean + sigma * found)
        met = tl.where(back, met_then, 0).to(tl.uint8)
        left = left_over(uniform, ratio, back, LEAST)
        tl.debug_barrier()  # every thread has read what is now replaced
        inside = column < tl.where(proposing, D, 0)
        tl.store(noise_ptr + at * D + column, found, mask=inside)
        tl.store(mean_ptr + at * D + column, mean, mask=inside)
        tl.store(draft_ptr + at * D + column, draft, mask=inside)
        tl.store(path_ptr + (at + 1) * D + column, x, mask=inside)
        tl.store(met_ptr + at + 1, met, mask=proposing)
        tl.store(log_uniform_ptr + at, left, mask=known)
        m += 1
        going = (m < num_steps) & ((met != 0) | (spent < width))
    tl.store(end_ptr + chain, m)


@triton.jit(do_not_specialize=["width", "rows", "num_steps"])
def settle_kernel(
    x_ptr, n_ptr, last_ptr, end_ptr, bad_ptr, pushed_ptr, calls_ptr, evaluations_ptr,
    noise_ptr, log_uniform_ptr, value_ptr, point_ptr, displacement_ptr, residual_ptr, slopes_ptr,
    accepted_ptr, decided_ptr, cross_ptr, square_ptr, learned_ptr,
    uv_ptr, a_ptr, b_ptr, sigma_ptr, delta_ptr, path_ptr, draft_ptr, met_ptr,
    points_ptr, steps_ptr, prediction_ptr, width, rows, num_steps,
    D: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, SECANTS: tl.constexpr,
    LEARN: tl.constexpr, CLIP: tl.constexpr, PAIRS: tl.constexpr, EQUAL: tl.constexpr,
):  # fmt: skip
    """Remember predictions (B, W, D) at points of the listed steps, couple, move on."""
    chain = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    n, last, end = tl.load(n_ptr + chain), tl.load(last_ptr + chain), tl.load(end_ptr + chain)
    row, left = chain * rows, end - n
    listed, wanted = steps_ptr + chain * width, n * 0
    for start in range(0, width, POSITIONS):
        position = start + tl.arange(0, POSITIONS)
        step = tl.load(listed + position, mask=position < width, other=num_steps)
        used = step < num_steps
        wanted += tl.sum(tl.where(used, 1, 0), axis=0)
    broken = take_in(
        points_ptr + chain * width * D, prediction_ptr + chain * width * D, listed,
        last_ptr, met_ptr, pushed_ptr, calls_ptr, evaluations_ptr, value_ptr, point_ptr,
        displacement_ptr, residual_ptr, slopes_ptr, cross_ptr, square_ptr, uv_ptr,
        chain, row, n, n, last, tl.maximum(last, end - 1), width, wanted,
        D, BLOCK, TILE, SECANTS, LEARN, CLIP, PAIRS, True,
    )  # fmt: skip
    at, x, _ = couple(
        path_ptr + (row + n) * D, draft_ptr + (row + n) * D, noise_ptr, log_uniform_ptr, value_ptr,
        accepted_ptr, decided_ptr, cross_ptr, square_ptr, learned_ptr, a_ptr, b_ptr, sigma_ptr,
        delta_ptr, row, rows, n, left, left, num_steps, D, BLOCK, TILE, LEARN, EQUAL,
    )  # fmt: skip
    tl.debug_barrier()
    here = tl.minimum(at + 1, num_steps)
    tl.store(x_ptr + chain * D + column, x, mask=column < D)
    tl.store(path_ptr + (row + here) * D + column, x, mask=column < D)
    tl.store(met_ptr + row + here, tl.zeros((), tl.uint8))
    tl.store(n_ptr + chain, here)
    blame(bad_ptr, chain, broken, here - 1)
