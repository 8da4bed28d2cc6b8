"""Triton source of the kernel in ``fused``. Importing this module imports triton."""

import triton
import triton.language as tl


@triton.jit
def follow_kernel(
    h_ptr, out_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, film_stride,
    residual_ptr, residual_stride, eps,
    T: tl.constexpr, C: tl.constexpr, G: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr, TAPS: tl.constexpr, NORM: tl.constexpr, FILM: tl.constexpr,
    RESIDUAL: tl.constexpr,
):  # fmt: skip
    """One sample's T points of one group of G channels, (T, G) of h, into windows.

    h (N, T, C), out (N, T, TAPS, C), weight and bias (C,), scale and shift (N, C) with rows
    ``film_stride`` apart, residual (N·T, C) with rows ``residual_stride`` apart.
    """
    sample = tl.program_id(0).to(tl.int64)
    point, column = tl.arange(0, BLOCK_T)[:, None], tl.arange(0, BLOCK_G)[None, :]
    channel = tl.program_id(1) * G + column
    inside = (point < T) & (column < G)
    wide = tl.float64 if h_ptr.dtype.element_ty == tl.float64 else tl.float32
    y = tl.load(h_ptr + (sample * T + point) * C + channel, mask=inside, other=0.0).to(wide)
    if NORM:
        mean = tl.sum(tl.sum(y, axis=1), axis=0) / (T * G)
        apart = tl.where(inside, y - mean, 0.0)
        variance = tl.sum(tl.sum(apart * apart, axis=1), axis=0) / (T * G)
        weight = tl.load(weight_ptr + channel, mask=column < G, other=0.0).to(wide)
        bias = tl.load(bias_ptr + channel, mask=column < G, other=0.0).to(wide)
        y = apart / tl.sqrt(variance + eps) * weight + bias
        e = tl.exp(y)  # Mish: x·tanh(softplus(x)) = x − x / (1 + e + e²/2)
        y = y - y / (1 + e + 0.5 * e * e)
    if FILM:
        at = sample * film_stride + channel
        scale = tl.load(scale_ptr + at, mask=column < G, other=0.0).to(wide)
        y = y * scale + tl.load(shift_ptr + at, mask=column < G, other=0.0).to(wide)
    if RESIDUAL:
        at = (sample * T + point) * residual_stride + channel
        y += tl.load(residual_ptr + at, mask=inside, other=0.0).to(wide)
    y = y.to(out_ptr.dtype.element_ty)
    for tap in tl.static_range(TAPS):
        # Point t is tap `tap` of the window around t + TAPS//2 − tap. Where that lies beyond an
        # end, the window that it comes round to is one that wants a zero there.
        window = point + TAPS // 2 - tap
        real = (window >= 0) & (window < T)
        window = (window + T * TAPS) % T  # of a number that is not negative
        at = ((sample * T + window) * TAPS + tap) * C + channel
        tl.store(out_ptr + at, tl.where(real, y, 0.0), mask=inside)
