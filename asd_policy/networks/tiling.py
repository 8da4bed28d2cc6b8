"""How a layer is cut into programs of a GPU, and whether it can be.

A layer is M = samples · points rows, each with N channels, summed over K = taps · channels. Whole
samples and whole groups share a program, whose norm needs them. What else is free is what takes the
least time on paper (``seconds``): few rows are the reading of the weights, once, by all of the
multiprocessors, so that their few tiles are split along K; with more rows, tiles that are larger
read less, and slices that are fewer leave less to the last program of a tile, which adds them up.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

LEAST_TRITON = (3, 2)
LEAST_CAPABILITY = (8, 0)
TILE = 8192  # numbers that a program sums: 64 registers a thread
LARGEST_TILE = 16384  # where a sample's group is that large
ROWS, COLUMNS = 128, 256  # of a tile, at most
MOST_SLICES = 16
STAGES = 4
# An H100's, from public figures: bytes a second of memory, of the L2 cache, and of the cache to one
# multiprocessor; operations of one of them with 2-byte numbers, at half of its peak; and what it
# takes until the last program of a tile knows that it is the last.
MEMORY, CACHE, ONE, OPERATIONS, ARRIVAL = 3.6e12, 5.5e12, 80e9, 3.7e12, 1.5e-6
FIRST_LOAD = 0.8e-6  # until the first numbers are there


@dataclass(frozen=True)
class Card:
    """A GPU, as far as it matters here. The default is an H100."""

    multiprocessors: int = 132
    shared_bytes: int = 232448  # that a program can have
    capability: tuple[int, int] = (9, 0)


@dataclass(frozen=True)
class Shape:
    """A layer of a call.

    Attributes:
        points: of a sample, each of which becomes ``phases``. columns: of the matrix, with groups
            of ``block``. steps, skip_steps: of ``step`` numbers, that are summed. size: bytes of a
            weight.
    """

    samples: int
    points: int
    phases: int
    columns: int
    block: int
    steps: int
    skip_steps: int
    step: int
    size: int


@dataclass(frozen=True)
class Tiling:
    """Tiles of block_m rows and block_n columns.

    Attributes:
        rows, columns: tiles along M, and along the columns of a phase. slices, skip_slices:
            programs that share a tile's sums; 1 and 0 where one does all.
    """

    block_m: int
    block_n: int
    rows: int
    columns: int
    slices: int
    skip_slices: int
    warps: int
    stages: int


class CannotCut(Exception):
    """Why a layer of this shape cannot be had on this card."""


@functools.lru_cache(maxsize=4096)
def tiling(shape: Shape, card: Card, split: bool = True) -> Tiling:
    """How to cut a layer; ``split`` allows several programs for a tile.

    Raises CannotCut where a sample's group or the matrix's tiles do not fit a program.
    """
    least = max(16, power_of_two(shape.points)) * max(16, shape.block)
    if least > LARGEST_TILE:
        raise CannotCut(f"{shape.points} points of a group of {shape.block} channels are too many")
    found = [
        cut
        for rows, columns in _tiles(shape, max(TILE, least))
        for cut in _cuts(shape, rows, columns, card, split)
    ]
    if not found:
        rows, columns = next(_tiles(shape, LARGEST_TILE))
        wanted = shape.step * (rows + columns) * shape.size
        raise CannotCut(f"{wanted} bytes of shared memory are wanted, got {card.shared_bytes}")
    return min(found, key=lambda cut: seconds(shape, cut, card))


def _tiles(shape: Shape, largest: int) -> Iterator[tuple[int, int]]:
    """Rows and columns of a tile: powers of two, 16 or more."""
    block_t, block_n = power_of_two(shape.points), max(16, shape.block)
    rows = max(16, block_t)
    while rows == max(16, block_t) or rows <= min(ROWS, power_of_two(shape.samples) * block_t):
        columns = block_n
        while columns == block_n or columns <= min(COLUMNS, power_of_two(shape.columns)):
            if rows * columns <= largest:
                yield rows, columns
            columns *= 2
        rows *= 2


def _cuts(shape: Shape, rows: int, columns: int, card: Card, split: bool) -> Iterator[Tiling]:
    samples = rows // power_of_two(shape.points)
    down, across = -(-shape.samples // samples), -(-shape.columns // columns)
    warps, stages = 8 if rows * columns > 4096 else 4, _stages(shape, rows, columns, card)
    if stages < 1:
        return
    yield Tiling(rows, columns, down, across, 1, 0, warps, stages)
    most = min(MOST_SLICES, shape.steps, card.multiprocessors // (down * across * shape.phases))
    for slices in range(1 if shape.skip_steps else 2, most + 1 if split else 0):
        skip = max(1, shape.skip_steps * slices // shape.steps) if shape.skip_steps else 0
        if down * across * shape.phases * (slices + skip) <= card.multiprocessors:
            yield Tiling(rows, columns, down, across, slices, skip, warps, stages)


def seconds(shape: Shape, cut: Tiling, card: Card) -> float:
    """What a layer takes on paper."""
    slices = cut.slices + cut.skip_slices
    tiles = cut.rows * cut.columns * shape.phases
    steps = shape.steps + shape.skip_steps
    deep = steps * shape.step
    rows = min(cut.block_m, shape.samples * shape.points)
    read = (rows + cut.block_n) * deep * shape.size / slices  # by a program
    work = 2 * cut.block_m * cut.block_n * deep / slices
    each = max(read / ONE, work * shape.size / (2 * OPERATIONS))
    busy = max(
        shape.phases * shape.columns * deep * shape.size / MEMORY,
        tiles * slices * read / CACHE,
        each * -(-tiles * slices // card.multiprocessors),
    )
    last = ARRIVAL + 4 * slices * rows * cut.block_n / ONE if slices > 1 else 0.0
    return FIRST_LOAD + busy + last


def _stages(shape: Shape, rows: int, columns: int, card: Card) -> int:
    """Steps that are loaded at a time; 0 where not even one fits."""
    each = shape.step * (rows + columns) * shape.size
    return min(STAGES, (card.shared_bytes - 4096) // each)


def power_of_two(number: int) -> int:
    """The least one that is not below."""
    return 1 << (number - 1).bit_length()


def step_of(channels: int) -> int:
    """How many are multiplied at a time: 64, or fewer where that leaves many out."""
    for step in (64, 32):
        if -(-channels // step) * step <= 1.25 * channels:
            return step
    return 16


def blocks_of(channels: int, groups: int | None) -> tuple[int, int]:
    """Channels of a group, and the columns that they take; any, where there are no groups."""
    if groups is not None:
        group = channels // groups
        return group, power_of_two(group)
    return (step_of(channels),) * 2


@functools.lru_cache
def card_of(device: torch.device) -> Card:
    """The device's, or the default in Triton's interpreter."""
    if device.type != "cuda":
        return Card()
    found = torch.cuda.get_device_properties(device)
    shared = getattr(found, "shared_memory_per_block_optin", 101376)  # the least from sm_80 on
    return Card(found.multi_processor_count, shared, (found.major, found.minor))


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which takes tensors on the CPU too."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why whole layers cannot be had for a network of this type there; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device.type != "cuda" and not interpreted():
        return f"they need a CUDA device, the network is on {device}"
    # Not its package's: that of Windows, of ROCm and of nightly builds has another name.
    version = importlib.import_module("triton").__version__
    if tuple(int(part) for part in version.split(".")[:2]) < LEAST_TRITON:
        return f"they need triton {'.'.join(map(str, LEAST_TRITON))} or newer, got {version}"
    if dtype != torch.float32:
        return f"they need a float32 network, got {str(dtype).removeprefix('torch.')}"
    if device.type == "cuda" and (capability := card_of(device).capability) < LEAST_CAPABILITY:
        need, got = (".".join(map(str, c)) for c in (LEAST_CAPABILITY, capability))
        return f"they need a GPU of compute capability {need} or newer, got {got}"
    return None
