"""What the hardware reaches on plain work, measured in the same run: copying, multiplying."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

Json = dict[str, Any]
BYTES = {"fp32": 4, "tf32": 4, "bf16": 2}


def measure_ceilings(device: torch.device, precisions: tuple[str, ...], quick: bool) -> Json:
    """Bytes/s (reads plus writes of a large copy) and FLOP/s of a large matrix product."""
    cuda = device.type == "cuda"
    megabytes = 8 if quick else (1024 if cuda else 256)
    source = torch.ones(megabytes * 2**18, device=device)
    target = torch.empty_like(source)
    seconds = _least(lambda: target.copy_(source), device)
    size = 256 if quick else (8192 if cuda else 1024)
    products = {}
    for precision in precisions:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        with matmul_precision(precision):
            products[precision] = 2 * size**3 / _least(partial(torch.mm, a, b), device)
    return {
        "copy_bytes_per_s": 2 * source.numel() * 4 / seconds,
        "copy_megabytes": megabytes,
        "matmul_flop_per_s": products,
        "matmul_size": size,
    }


@contextlib.contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """TF32 matrix products within, if asked for."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def synchronize(device: torch.device) -> None:
    """Wait for everything that was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def least_seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The least of a few: whatever else the machine does only ever adds."""
    times = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _least(work: Callable[[], object], device: torch.device) -> float:
    least_seconds(work, device, 2)
    return least_seconds(work, device, 8)
