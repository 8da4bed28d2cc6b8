"""Triton source of the kernels in ``kernels.triton``: one program per chain.

Importing this module imports triton. Notation and equations are those of the PyTorch form
(``asd_policy.drafts``, ``asd_policy.samplers.asd``); (…, D) tensors are contiguous, ``rows`` is R.
A program's own global writes are read back, and scalars that it has read are overwritten, only
behind a ``debug_barrier``.
"""

import triton
import triton.language as tl

from asd_policy.engine.triton_parts import bounded, predicted, reflected, row_of, secants_of

POSITIONS = tl.constexpr(64)  # of a window, counted at a time


@triton.jit(do_not_specialize=["width", "rows"])
def propose_kernel(
    x_ptr, n_ptr, last_ptr, noise_ptr, value_ptr, point_ptr, displacement_ptr, residual_ptr,
    slopes_ptr, a_ptr, b_ptr, sigma_ptr, points_ptr, drafts_ptr, width, rows,
    D: tl.constexpr, BLOCK: tl.constexpr, FROZEN: tl.constexpr, CORRECT: tl.constexpr,
    SECANT: tl.constexpr, CLIP: tl.constexpr, PAIRS: tl.constexpr, RIDGE: tl.constexpr,
):  # fmt: skip
    """Points (B, W+1, D) and drafts (B, W, D) of the window.

    The provisional walk and the proposals' go side by side: a step's correction needs the
    provisional point of that step only. Reads at most row n + W, which exists.
    """
    chain = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < D
    n, last = tl.load(n_ptr + chain), tl.load(last_ptr + chain)
    x = row_of(x_ptr, chain, column, D)
    provisional = x
    tl.store(points_ptr + chain * (width + 1) * D + column, x, mask=inside)
    if SECANT:
        stored, coefficients = secants_of(
            displacement_ptr, residual_ptr, chain, column, D, PAIRS, RIDGE
        )
    row = chain * rows + n
    base = row_of(value_ptr, chain * rows + tl.maximum(tl.minimum(n, last), 0), column, D)
    noise, origin = row_of(noise_ptr, row, column, D), row_of(point_ptr, row, column, D)
    draft = base
    for m in range(width):
        step = n + m
        # Loads of the next step first: they do not depend on this one's arithmetic.
        source = n if FROZEN else step + 1
        next_row = chain * rows + tl.maximum(tl.minimum(source, last), 0)
        next_base = row_of(value_ptr, next_row, column, D)
        next_noise = row_of(noise_ptr, row + m + 1, column, D)
        next_origin = row_of(point_ptr, row + m + 1, column, D)
        a, b, sigma = tl.load(a_ptr + step), tl.load(b_ptr + step), tl.load(sigma_ptr + step)
        if CORRECT:
            z = tl.where(step <= last, provisional - origin, 0.0)
            corrected = base + tl.load(slopes_ptr + step) * z
            if SECANT:
                share = tl.sum(z[None, :] * stored, axis=1)
                corrected += tl.sum(share[:, None] * coefficients, axis=0)
            # Where nothing is known yet, the draft before is carried on.
            found = bounded(corrected, base, CLIP)
            draft = tl.where((m == 0) | (step <= last), found, draft)
            provisional = a * base + b * provisional + sigma * noise
        else:
            draft = base
        x = a * draft + b * x + sigma * noise
        tl.store(drafts_ptr + (chain * width + m) * D + column, draft, mask=inside)
        tl.store(points_ptr + (chain * (width + 1) + m + 1) * D + column, x, mask=inside)
        base, noise, origin = next_base, next_noise, next_origin


@triton.jit
def all_finite(x0, axis: tl.constexpr):
    return tl.min(tl.where(tl.abs(x0) < float("inf"), 1, 0), axis=axis) > 0


@triton.jit
def push_secant(
    points_ptr, prediction_ptr, uv_ptr, value_ptr, point_ptr, displacement_ptr, residual_ptr,
    slopes_ptr, chain, row, n, pushed, usable, column,
    D: tl.constexpr, CLIP: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Put the pair of step n in place of the oldest, if ``usable``; whether it was, and finite."""
    u = tl.load(uv_ptr + 2 * n, mask=usable, other=0.0)
    v = tl.load(uv_ptr + 2 * n + 1, mask=usable, other=0.0)
    here, said = row_of(points_ptr, 0, column, D), row_of(prediction_ptr, 0, column, D)
    displacement = here - row_of(point_ptr, row, column, D)
    x0 = predicted(here, said, u, v, CLIP)
    usable = usable & all_finite(x0, 0)
    change = x0 - row_of(value_ptr, row, column, D)
    residual = change - tl.load(slopes_ptr + n) * displacement
    length = tl.sqrt(tl.sum(displacement * displacement, axis=0))
    scale = tl.where(length > 0, 1.0 / length, 0.0)
    to = (chain * PAIRS + pushed % PAIRS) * D + column
    inside = column < tl.where(usable, D, 0)
    tl.store(displacement_ptr + to, displacement * scale, mask=inside)
    tl.store(residual_ptr + to, residual * scale, mask=inside)
    return usable


@triton.jit
def remember(
    points_ptr, prediction_ptr, uv_ptr, value_ptr, point_ptr, cross_ptr, square_ptr, steps_ptr,
    met_ptr, row, first, last, width, wanted,
    D: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, CLIP: tl.constexpr,
    LEARN: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """Store x̂0 and points of the steps from ``first`` on, whose first ``wanted`` were evaluated; if
    LISTED, of the first ``wanted`` listed ones, which are met where finite. Where they are not,
    what was known stays, and x̂0 = 0 where nothing was.

    Pointers are at the chain's first row of points and predictions; ``row`` is the chain's first
    of the (B, R, …) tensors. Returns the first position that is not finite, or ``width``.
    """
    column = tl.arange(0, BLOCK)[None, :]
    bad = width
    for start in range(0, width, TILE):
        position = start + tl.arange(0, TILE)
        step, live, used = first + position, position < width, position < wanted
        if LISTED:
            step, live = tl.load(steps_ptr + position, mask=used, other=0), used
        inside = live[:, None] & (column < D)
        index, at = position[:, None] * D + column, (row + step)[:, None] * D + column
        here = tl.load(points_ptr + index, mask=inside, other=0.0)
        said = tl.load(prediction_ptr + index, mask=inside & used[:, None], other=0.0)
        before = tl.load(value_ptr + at, mask=inside, other=0.0)
        u = tl.load(uv_ptr + 2 * step, mask=used, other=0.0)
        v = tl.load(uv_ptr + 2 * step + 1, mask=used, other=0.0)
        x0 = predicted(here, said, u[:, None], v[:, None], CLIP)
        x0 = tl.where(used[:, None], x0, before)
        finite = all_finite(x0, 1)
        broken, known = tl.where(finite, 0, 1) * tl.where(used, 1, 0), step <= last
        bad = tl.minimum(bad, tl.min(tl.where(broken > 0, position, width), axis=0))
        then = tl.load(point_ptr + at, mask=inside, other=0.0)
        stays = ((broken > 0) & known)[:, None]
        x0 = tl.where((broken > 0)[:, None], tl.where(stays, before, 0.0), x0)
        if LISTED:
            tl.store(met_ptr + row + step, tl.where(finite, 1, 0).to(tl.uint8), mask=used)
        if LEARN:
            displacement = here - then
            known = known & used & finite
            cross = tl.where(known, tl.sum(displacement * (x0 - before), axis=1), 0.0)
            square = tl.where(known, tl.sum(displacement * displacement, axis=1), 0.0)
            tl.store(cross_ptr + row + step, cross, mask=used)
            tl.store(square_ptr + row + step, square, mask=used)
        tl.store(value_ptr + at, x0, mask=inside)
        tl.store(point_ptr + at, tl.where(stays, then, here), mask=inside)
    return bad


@triton.jit
def first_rejection(
    drafts_ptr, noise_ptr, value_ptr, log_uniform_ptr, delta_ptr, row, n, width,
    D: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The first position of the window whose proposal does not stand, or ``width``."""
    column = tl.arange(0, BLOCK)[None, :]
    length = width
    for start in range(0, width, TILE):
        position = start + tl.arange(0, TILE)
        step, live = n + position, position < width
        inside = live[:, None] & (column < D)
        at = (row + step)[:, None] * D + column
        noise = tl.load(noise_ptr + at, mask=inside, other=0.0)
        target = tl.load(value_ptr + at, mask=inside, other=0.0)
        draft = tl.load(drafts_ptr + position[:, None] * D + column, mask=inside, other=0.0)
        scale = tl.load(delta_ptr + step, mask=live, other=0.0)[:, None]
        delta = tl.where(scale > 0, (draft - target) * scale, 0.0)
        excess = tl.sum((noise + 0.5 * delta) * delta, axis=1)
        excess += tl.load(log_uniform_ptr + row + step, mask=live, other=0.0)
        # A NaN compares false, and −∞ must not be an accept.
        stands = (excess <= 0) & (excess > -float("inf"))
        length = tl.minimum(length, tl.min(tl.where(stands, width, position), axis=0))
    return length


@triton.jit
def moved(
    point, draft, noise, target, scale, a, b, sigma, rejected, EQUAL: tl.constexpr
):  # fmt: skip
    """a·x̂0 + b·x + σ·ξ', with ξ' = ξ reflected after a rejection and ξ + δ after an accept."""
    delta = tl.where(scale > 0, (draft - target) * scale, 0.0)
    square = tl.sum(delta * delta, axis=0)
    back = reflected(noise, delta, tl.sum(noise * delta, axis=0), square, EQUAL)
    noise = tl.where(rejected, back, noise + delta)
    return a * target + b * point + sigma * noise


@triton.jit
def count(
    accepted_ptr, decided_ptr, cross_ptr, square_ptr, learned_ptr,
    row, rows, n, stop, rejected, num_steps, width, LEARN: tl.constexpr,
):  # fmt: skip
    """Add what was decided, and what slopes are estimated from, to the steps up to ``stop``."""
    for start in range(0, width, POSITIONS):
        position = start + tl.arange(0, POSITIONS)
        step = n + position
        decided = (position < width) & (position <= stop) & (step < num_steps - 1)
        accepted = tl.where(rejected & (position == stop), 0, 1)
        old = tl.load(decided_ptr + row + step, mask=decided, other=0)
        tl.store(decided_ptr + row + step, old + 1, mask=decided)
        old = tl.load(accepted_ptr + row + step, mask=decided, other=0)
        tl.store(accepted_ptr + row + step, old + accepted, mask=decided)
        if LEARN:
            cross = tl.load(cross_ptr + row + step, mask=decided, other=0.0)
            square = tl.load(square_ptr + row + step, mask=decided, other=0.0)
            tl.atomic_add(learned_ptr + step, cross.to(tl.float64), mask=decided)
            tl.atomic_add(learned_ptr + rows + step, square.to(tl.float64), mask=decided)


@triton.jit
def take_in(
    points_ptr, prediction_ptr, steps_ptr, last_ptr, met_ptr, pushed_ptr, calls_ptr,
    evaluations_ptr, value_ptr, point_ptr, displacement_ptr, residual_ptr, slopes_ptr, cross_ptr,
    square_ptr, uv_ptr, chain, row, n, first, last, reached, width, wanted,
    D: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, PAIR: tl.constexpr,
    LEARN: tl.constexpr, CLIP: tl.constexpr, PAIRS: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """:func:`remember`, after a secant pair is kept if PAIR, and count it: the furthest step
    ``reached``, calls, rows. Returns the first step that was not finite, or one beyond all."""
    pushed, usable = tl.load(pushed_ptr + chain), (n <= last) & (wanted > 0)
    if PAIR:
        usable = push_secant(
            points_ptr, prediction_ptr, uv_ptr, value_ptr, point_ptr, displacement_ptr,
            residual_ptr, slopes_ptr, chain, row + n, n, pushed, usable, tl.arange(0, BLOCK),
            D, CLIP, PAIRS,
        )  # fmt: skip
        tl.debug_barrier()  # before what it read is replaced
    bad = remember(
        points_ptr, prediction_ptr, uv_ptr, value_ptr, point_ptr, cross_ptr, square_ptr, steps_ptr,
        met_ptr, row, first, last, width, wanted, D, BLOCK, TILE, CLIP, LEARN, LISTED,
    )  # fmt: skip
    broken = tl.load(steps_ptr + bad, mask=bad < width, other=0) if LISTED else first + bad
    tl.debug_barrier()
    tl.store(last_ptr + chain, reached)
    tl.store(calls_ptr + chain, tl.load(calls_ptr + chain) + tl.where(wanted > 0, 1, 0))
    tl.store(evaluations_ptr + chain, tl.load(evaluations_ptr + chain) + wanted)
    if PAIR:
        tl.store(pushed_ptr + chain, pushed + tl.where(usable, 1, 0))
    return tl.where(bad < width, broken, 1 << 30)


@triton.jit
def blame(bad_ptr, chain, broken, reached):
    """``samplers.asd._blame``: a step at which the network was not finite, and the chain was."""
    known = tl.load(bad_ptr + chain)
    tl.store(bad_ptr + chain, tl.where((known < 0) & (broken <= reached), broken, known))


@triton.jit
def couple(
    points_ptr, drafts_ptr, noise_ptr, log_uniform_ptr, value_ptr, accepted_ptr, decided_ptr,
    cross_ptr, square_ptr, learned_ptr, a_ptr, b_ptr, sigma_ptr, delta_ptr,
    row, rows, n, width, left, num_steps, D: tl.constexpr, BLOCK: tl.constexpr,
    TILE: tl.constexpr, LEARN: tl.constexpr, EQUAL: tl.constexpr,
):  # fmt: skip
    """Couple the ``left`` real steps of a window in order, and count what was decided: the last
    step that was reached, the point after it, and whether a draft was rejected there."""
    column = tl.arange(0, BLOCK)
    length = first_rejection(
        drafts_ptr, noise_ptr, value_ptr, log_uniform_ptr, delta_ptr, row, n, width,
        D, BLOCK, TILE)  # fmt: skip
    stop, rejected = tl.maximum(tl.minimum(length, left - 1), 0), length < left
    count(
        accepted_ptr, decided_ptr, cross_ptr, square_ptr, learned_ptr,
        row, rows, n, stop, rejected, num_steps, width, LEARN,
    )  # fmt: skip
    at = n + stop
    x = moved(
        row_of(points_ptr, stop, column, D), row_of(drafts_ptr, stop, column, D),
        row_of(noise_ptr, row + at, column, D), row_of(value_ptr, row + at, column, D),
        tl.load(delta_ptr + at), tl.load(a_ptr + at), tl.load(b_ptr + at),
        tl.load(sigma_ptr + at), rejected, EQUAL,
    )  # fmt: skip
    return at, x, rejected


@triton.jit(do_not_specialize=["width", "rows", "num_steps"])
def verify_kernel(
    x_ptr, n_ptr, last_ptr, fresh_ptr, bad_ptr, pushed_ptr, calls_ptr, evaluations_ptr,
    noise_ptr, log_uniform_ptr, value_ptr, point_ptr, displacement_ptr, residual_ptr, slopes_ptr,
    accepted_ptr, decided_ptr, cross_ptr, square_ptr, learned_ptr,
    uv_ptr, a_ptr, b_ptr, sigma_ptr, delta_ptr, points_ptr, drafts_ptr, prediction_ptr,
    width, rows, num_steps, D: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
    AHEAD: tl.constexpr, COUPLE: tl.constexpr, SECANTS: tl.constexpr, LEARN: tl.constexpr,
    CLIP: tl.constexpr, PAIRS: tl.constexpr, EQUAL: tl.constexpr,
):  # fmt: skip
    """Remember predictions (B, W, D) of the steps from n + AHEAD on; if COUPLE, also move on.

    points: (B, W+1, D) of the steps from n on if COUPLE, else (B, W, D) of those predicted.
    """
    chain = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    n, last = tl.load(n_ptr + chain), tl.load(last_ptr + chain)
    fresh, row = tl.load(fresh_ptr + chain), chain * rows
    wanted = tl.maximum(tl.minimum(num_steps - n - AHEAD, width), 0)
    if AHEAD == 0:
        wanted = tl.where(fresh != 0, 0, wanted)
    first_point = points_ptr + chain * (width + (1 if COUPLE else 0)) * D
    reached = tl.maximum(last, tl.minimum(n + AHEAD + width, num_steps) - 1)
    broken = take_in(
        first_point + (AHEAD * D if COUPLE else 0), prediction_ptr + chain * width * D, uv_ptr,
        last_ptr, fresh_ptr, pushed_ptr, calls_ptr, evaluations_ptr, value_ptr, point_ptr,
        displacement_ptr, residual_ptr, slopes_ptr, cross_ptr, square_ptr, uv_ptr,
        chain, row, n, n + AHEAD, last, reached, width, wanted,
        D, BLOCK, TILE, SECANTS and AHEAD == 0, LEARN, CLIP, PAIRS, False,
    )  # fmt: skip
    here = n  # the furthest step whose point is the chain's own
    if COUPLE:
        at, x, rejected = couple(
            first_point, drafts_ptr + chain * width * D, noise_ptr, log_uniform_ptr, value_ptr,
            accepted_ptr, decided_ptr, cross_ptr, square_ptr, learned_ptr, a_ptr, b_ptr, sigma_ptr,
            delta_ptr, row, rows, n, width, tl.minimum(num_steps - n, width), num_steps,
            D, BLOCK, TILE, LEARN, EQUAL,
        )  # fmt: skip
        tl.store(x_ptr + chain * D + column, x, mask=column < D)
        stale = rejected | (n + width >= num_steps)
        here = tl.minimum(at + 1, num_steps)
        tl.store(fresh_ptr + chain, tl.where(stale, 0, AHEAD).to(tl.uint8))
        tl.store(n_ptr + chain, here)
        here += tl.where(stale, 0, AHEAD) - 1
    blame(bad_ptr, chain, broken, here)


@triton.jit(do_not_specialize=["noise_rows", "num_steps"])
def advance_kernel(
    x_ptr, prediction_ptr, noise_ptr, n_ptr, bad_ptr, uv_ptr, a_ptr, b_ptr, sigma_ptr, c_ptr,
    noise_rows, num_steps, D: tl.constexpr, BLOCK: tl.constexpr, CLIP: tl.constexpr,
):  # fmt: skip
    """One sequential step of every chain that is not at its end; counters are per chain."""
    chain = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    n = tl.load(n_ptr + chain)
    x, said = row_of(x_ptr, chain, column, D), row_of(prediction_ptr, chain, column, D)
    step = tl.minimum(n, num_steps - 1)
    noise = row_of(noise_ptr, chain * noise_rows + step, column, D)
    u, v = tl.load(uv_ptr + 2 * step), tl.load(uv_ptr + 2 * step + 1)
    x0 = predicted(x, said, u, v, CLIP)
    a, b, sigma = tl.load(a_ptr + step), tl.load(b_ptr + step), tl.load(sigma_ptr + step)
    going = n < num_steps
    moved_to = a * x0 + b * x + sigma * noise + tl.load(c_ptr + step) * said
    broken = tl.max(tl.where(tl.abs(said) < float("inf"), 0, 1), axis=0)
    known = tl.load(bad_ptr + chain)
    tl.debug_barrier()  # every thread has read what is now replaced
    tl.store(x_ptr + chain * D + column, moved_to, mask=column < tl.where(going, D, 0))
    tl.store(bad_ptr + chain, tl.where(going & (known < 0) & (broken > 0), n, known))
    tl.store(n_ptr + chain, tl.where(going, n + 1, n))
