"""Triton source of the kernel in ``whole``: a layer of the U-Net. Importing this imports triton.

A program multiplies some rows (whole samples) with some columns (whole groups of channels), over a
slice of what is summed. The program of a tile that comes last has all slices at hand: it adds them
up in their order, whoever came when, and does all that follows. Integers alone are added by
atomics, so that a call gives the same bits each time.
"""

import triton
import triton.language as tl


@triton.jit
def accumulate(
    sums, x_ptr, channels, weight_ptr, sample, point, real, column, inside, depth,
    first, last, length, STRIDE: tl.constexpr, BEFORE: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """sums + windows of x (N, length, channels) times a matrix (columns, depth), of whose steps
    those from ``first`` up to ``last``; a step is a point of the window and BLOCK_K channels."""
    lane = tl.arange(0, BLOCK_K)
    steps_at_point = tl.cdiv(channels, BLOCK_K)
    for step in range(first, last):
        at = STRIDE * point + step // steps_at_point - BEFORE
        channel = step % steps_at_point * BLOCK_K + lane
        seen = real & (at >= 0) & (at < length)
        row = (sample * length + at).to(tl.int64) * channels
        x = tl.load(
            x_ptr + row[:, None] + channel[None, :],
            mask=seen[:, None] & (channel < channels)[None, :], other=0.0,
        )  # fmt: skip
        deep = (step * BLOCK_K + lane)[:, None] + column.to(tl.int64)[None, :] * depth
        matrix = tl.load(weight_ptr + deep, mask=inside[None, :], other=0.0)
        x = x.to(matrix.dtype)
        if PRECISION == "wide":  # the interpreter cannot multiply bfloat16
            sums = tl.dot(x.to(tl.float32), matrix.to(tl.float32), sums, input_precision="ieee")
        else:
            sums = tl.dot(x, matrix, sums, input_precision=PRECISION)
    return sums


@triton.jit
def product(
    sums, x_ptr, channels, more_ptr, more_channels, weight_ptr, sample, point, real, column,
    inside, depth, first, last, length, taps, STRIDE: tl.constexpr, BEFORE: tl.constexpr,
    BLOCK_K: tl.constexpr, MORE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """:func:`accumulate` over the channels of x and, if MORE, then over those of ``more``."""
    if MORE:
        own = taps * tl.cdiv(channels, BLOCK_K)
        sums = accumulate(
            sums, x_ptr, channels, weight_ptr, sample, point, real, column, inside, depth,
            tl.minimum(first, own), tl.minimum(last, own), length,
            STRIDE, BEFORE, BLOCK_K, PRECISION,
        )  # fmt: skip
        beyond = weight_ptr + own * BLOCK_K
        return accumulate(
            sums, more_ptr, more_channels, beyond, sample, point, real, column, inside, depth,
            tl.maximum(first, own) - own, tl.maximum(last, own) - own, length,
            STRIDE, BEFORE, BLOCK_K, PRECISION,
        )  # fmt: skip
    return accumulate(
        sums, x_ptr, channels, weight_ptr, sample, point, real, column, inside, depth,
        first, last, length, STRIDE, BEFORE, BLOCK_K, PRECISION,
    )  # fmt: skip


@triton.jit
def mean_of_groups(
    y, count, BLOCK_T: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """The sum over a sample's points and a group's channels, over ``count``, in each of them."""
    ROWS: tl.constexpr = y.shape[0]
    COLUMNS: tl.constexpr = y.shape[1]
    apart = tl.reshape(y, (ROWS // BLOCK_T, BLOCK_T, COLUMNS // BLOCK_G, BLOCK_G))
    mean = tl.sum(tl.sum(apart, axis=3), axis=1) / count
    return tl.reshape(tl.broadcast_to(mean[:, None, :, None], apart.shape), (ROWS, COLUMNS))


@triton.jit
def sum_of_slices(at_ptr, first, last, real, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Partial sums in the order of their slices, which others have written."""
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for number in tl.range(first, last, loop_unroll_factor=4):
        at = at_ptr + number * (BLOCK_M * BLOCK_N)
        total += tl.load(at, mask=real[:, None], other=0.0, cache_modifier=".cg")
    return total


@triton.jit
def activated(
    y, vector_ptr, scale_ptr, shift_ptr, film_stride, skip_ptr, out_at, sample, column, channel,
    wanted, inside, columns, count, eps, BLOCK_T: tl.constexpr, BLOCK_G: tl.constexpr,
    NORM: tl.constexpr, FILM: tl.constexpr, SKIP: tl.constexpr,
):  # fmt: skip
    """What follows a product: its bias; group norm and Mish; scale and shift; what is added, or the
    bias of that."""
    y += tl.load(vector_ptr + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    if NORM:
        apart = y - mean_of_groups(tl.where(wanted, y, 0.0), count, BLOCK_T, BLOCK_G)
        apart = tl.where(wanted, apart, 0.0)
        variance = mean_of_groups(apart * apart, count, BLOCK_T, BLOCK_G)
        weight = tl.load(vector_ptr + columns + column, mask=inside, other=0.0).to(tl.float32)
        bias = tl.load(vector_ptr + 2 * columns + column, mask=inside, other=0.0).to(tl.float32)
        y = apart / tl.sqrt(variance + eps) * weight[None, :] + bias[None, :]
        e = tl.exp(y)  # Mish: x·tanh(softplus(x)) = x − x / (1 + e + e²/2)
        y = y - y / (1 + e + 0.5 * e * e)
    if FILM:
        at = sample.to(tl.int64)[:, None] * film_stride + channel[None, :]
        scale = tl.load(scale_ptr + at, mask=wanted, other=0.0).to(tl.float32)
        y = y * scale + tl.load(shift_ptr + at, mask=wanted, other=0.0).to(tl.float32)
    if SKIP == "same":
        y += tl.load(skip_ptr + out_at, mask=wanted, other=0.0).to(tl.float32)
    if SKIP == "product":
        bias = tl.load(vector_ptr + 3 * columns + column, mask=inside, other=0.0)
        y += bias.to(tl.float32)[None, :]
    return y


@triton.jit
def begin(weight_ptr, column, columns, depth, first, last, BLOCK_N: tl.constexpr):
    """Let the next launch begin as well; ask for weights, then wait for the launch before.

    The weights, which nobody writes, are 512 bytes of each column of this program.
    """
    tl.extra.cuda.gdc_launch_dependents()
    size: tl.constexpr = weight_ptr.dtype.element_ty.primitive_bitwidth // 8
    deep = tl.minimum(first + tl.arange(0, 4) * (128 // size), last - 1)
    row = tl.minimum(column, columns - 1).to(tl.int64) * depth
    line = weight_ptr.to(tl.int64) + (row[:, None] + deep[None, :]) * size
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [line], dtype=tl.int32, is_pure=False,
        pack=1,
    )  # fmt: skip
    tl.extra.cuda.gdc_wait()


@triton.jit
def clear(count_ptr, count, program, CLEAR: tl.constexpr):
    """If CLEAR, set ``count`` counters to zero, each program its share."""
    if CLEAR:
        for start in range(256 * program, count, 256 * tl.num_programs(0) * tl.num_programs(1)):
            which = start + tl.arange(0, 256)
            tl.store(count_ptr + which, tl.zeros((256,), tl.int32), mask=which < count)


@triton.jit
def share(slice, slices, steps):
    """The steps of a slice; none where it is not one of them."""
    first, last = tl.maximum(slice, 0), tl.maximum(slice + 1, 0)
    return tl.minimum(first, slices) * steps // slices, tl.minimum(last, slices) * steps // slices


@triton.jit
def channels_of(
    column, inside, group, groups, out_channels, BLOCK_G: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The channel of each column, and whether there is one."""
    channel, known = column, inside
    if not EXACT:
        channel = column // BLOCK_G * group + column % BLOCK_G
        known = (column % BLOCK_G < group) & (column // BLOCK_G < groups) & (channel < out_channels)
    return channel, known


@triton.jit
def arrived(at_ptr, count_ptr, sums, real, slice, SIZE: tl.constexpr):
    """Leave a slice's sums where the last program finds them; whether this one is the last."""
    tl.store(at_ptr + slice * SIZE, sums, mask=real[:, None])
    tl.debug_barrier()  # all threads have written before one of them says so
    before = tl.atomic_add(count_ptr, 1, sem="acq_rel", scope="gpu")
    return before == tl.num_programs(2) - 1


@triton.jit(
    do_not_specialize=[
        "samples", "points", "length", "taps", "steps", "skip_steps", "slices", "skip_slices",
        "tiles", "clears", "group", "groups",
    ]
)  # fmt: skip
def layer_kernel(
    x_ptr, more_ptr, weight_ptr, vector_ptr, scale_ptr, shift_ptr, skip_ptr, skip_more_ptr,
    skip_weight_ptr, out_ptr, partial_ptr, count_ptr,
    samples, points, length, taps, channels, more_channels, skip_channels, skip_more_channels,
    out_channels, columns, depth, skip_depth, group, groups, film_stride, steps, skip_steps,
    slices, skip_slices, tiles, clears, eps,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_G: tl.constexpr,
    BLOCK_K: tl.constexpr, SKIP_K: tl.constexpr, STRIDE: tl.constexpr, BEFORE: tl.constexpr,
    PHASES: tl.constexpr, MORE: tl.constexpr, SKIP_MORE: tl.constexpr, NORM: tl.constexpr,
    FILM: tl.constexpr, SKIP: tl.constexpr, SPLIT: tl.constexpr, CLEAR: tl.constexpr,
    EXACT: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A convolution (N, length, channels) → (N, PHASES·points, out_channels), and what follows it.

    Row j of a tile is point ``j % BLOCK_T`` of a sample, and column j is channel ``j % BLOCK_G`` of
    a group; those beyond ``points`` and ``group`` are not real (EXACT: all columns are). A phase
    has a matrix of its own and gives every PHASES-th point. SKIP: "none"; "same", skip (N, points,
    out_channels) is added; or "product", a convolution of one point of it is. ``partial`` is
    (tiles, slices, BLOCK_M, BLOCK_N).
    CLEAR: ``count`` is set to zero, for the layers after this one.
    """
    tile, slice = tl.program_id(0), tl.program_id(2)
    number, phase = tl.program_id(1) * tl.num_programs(0) + tile, tile // tiles
    first, last = share(slice, slices, steps)
    weight_ptr += phase.to(tl.int64) * columns * depth
    column = tile % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    if PDL:
        begin(weight_ptr, column, columns, depth, first * BLOCK_K, last * BLOCK_K, BLOCK_N)
    line = tl.arange(0, BLOCK_M)
    sample, point = tl.program_id(1) * (BLOCK_M // BLOCK_T) + line // BLOCK_T, line % BLOCK_T
    real, inside = (sample < samples) & (point < points), column < columns
    channel, known = channels_of(column, inside, group, groups, out_channels, BLOCK_G, EXACT)
    wanted = real[:, None] & known[None, :]
    row = ((sample * points + point) * PHASES + phase).to(tl.int64) * out_channels
    at = row[:, None] + channel[None, :]
    clear(count_ptr, clears, number, CLEAR)
    y = product(
        tl.zeros((BLOCK_M, BLOCK_N), tl.float32), x_ptr, channels, more_ptr, more_channels,
        weight_ptr, sample, point + phase, real, column, inside, depth, first, last, length,
        taps, STRIDE, BEFORE, BLOCK_K, MORE, PRECISION,
    )  # fmt: skip
    if not SPLIT:
        y = activated(
            y, vector_ptr, scale_ptr, shift_ptr, film_stride, skip_ptr, at, sample, column, channel,
            wanted, inside, columns, group * points, eps, BLOCK_T, BLOCK_G, NORM, FILM, SKIP,
        )  # fmt: skip
    if SKIP == "product":  # where split, a program has steps of one product
        skip_first, skip_last = share(slice - slices if SPLIT else slice, skip_slices, skip_steps)
        y = product(
            y, skip_ptr, skip_channels, skip_more_ptr, skip_more_channels, skip_weight_ptr,
            sample, point, real, column, inside, skip_depth, skip_first, skip_last, length, 1,
            1, 0, SKIP_K, SKIP_MORE, PRECISION,
        )  # fmt: skip
    ends = True
    at_ptr = partial_ptr + line[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    if SPLIT:
        at_ptr += number.to(tl.int64) * tl.num_programs(2) * (BLOCK_M * BLOCK_N)
        ends = arrived(at_ptr, count_ptr + number, y, real, slice, BLOCK_M * BLOCK_N)
    if ends:
        if SPLIT:
            y = activated(
                sum_of_slices(at_ptr, 0, slices, real, BLOCK_M, BLOCK_N), vector_ptr, scale_ptr,
                shift_ptr, film_stride, skip_ptr, at, sample, column, channel, wanted, inside,
                columns, group * points, eps, BLOCK_T, BLOCK_G, NORM, FILM, SKIP,
            )  # fmt: skip
            if SKIP == "product":
                y += sum_of_slices(at_ptr, slices, slices + skip_slices, real, BLOCK_M, BLOCK_N)
        tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=wanted)
