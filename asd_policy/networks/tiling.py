"""How a layer is cut into programs of a GPU, and whether it can be.

A layer is M = samples · points rows, each with N channels, summed over K = taps · channels. Whole
samples and whole groups share a program, whose norm needs them; what else is free is settled here.

Up to 32 rows a layer is the reading of its weights, once, by all of the multiprocessors. Few tiles
are therefore cut along K, to about one program each. The last one of a tile reads all partial sums
alone, at some 80 GB/s, so that slices are few where tiles are large (``PARTIAL_BYTES``).
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass

import torch

LEAST_TRITON = (3, 2)
LEAST_CAPABILITY = (8, 0)
TILE = 8192  # numbers that a program sums: 64 registers a thread
LARGEST_TILE = 16384  # where a sample's group is that large
ROWS = 64  # of a tile, where there are so many
COLUMNS = 32  # of a tile, at least: 64 bytes in bfloat16
LEAST_STEPS = 4  # of a slice: as many loads as are under way at a time
MOST_SLICES = 16
PARTIAL_BYTES = 2**18  # that the last program of a tile reads
MANY_TILES = 4  # for each multiprocessor, from which on they are made larger
STAGES = 4


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

    Raises CannotCut where a sample's group or the matrix's tiles do not fit a program."""
    block_t = power_of_two(shape.points)
    rows = _rows(shape, block_t)
    block_n = max(shape.block, 16, min(COLUMNS, power_of_two(shape.columns)))
    while rows * block_n > TILE and rows > max(16, block_t):
        rows //= 2
    if rows * block_n > LARGEST_TILE:
        raise CannotCut(f"{shape.points} points of a group of {shape.block} channels are too many")
    if _tiles(shape, rows, block_n) >= MANY_TILES * card.multiprocessors:
        if 2 * rows * block_n <= TILE:
            block_n = min(2 * block_n, power_of_two(shape.columns))
        if 2 * rows * block_n <= TILE:
            rows *= 2
    tiles = _tiles(shape, rows, block_n)
    slices, skip_slices = _slices(shape, tiles, rows * block_n, card) if split else (1, 0)
    samples = rows // block_t
    return Tiling(
        rows, block_n, -(-shape.samples // samples), -(-shape.columns // block_n), slices,
        skip_slices, 8 if rows * block_n > 4096 else 4, _stages(shape, rows, block_n, card),
    )  # fmt: skip


def _rows(shape: Shape, block_t: int) -> int:
    """Of a tile: whole samples, 16 or more."""
    wanted = min(ROWS, power_of_two(shape.samples) * block_t)
    return max(16, block_t, wanted)


def _tiles(shape: Shape, rows: int, columns: int) -> int:
    samples = rows // power_of_two(shape.points)
    return -(-shape.samples // samples) * -(-shape.columns // columns) * shape.phases


def _slices(shape: Shape, tiles: int, tile: int, card: Card) -> tuple[int, int]:
    """Programs for a tile's product and for that of what is added to it."""
    most = min(card.multiprocessors // tiles, MOST_SLICES, PARTIAL_BYTES // (4 * tile))
    steps = shape.steps + shape.skip_steps
    each = max(-(-steps // max(1, most)), LEAST_STEPS)  # steps of a slice
    slices = max(1, shape.steps // each)
    if not shape.skip_steps:
        return slices, 0
    if steps <= each or slices + 1 > most:
        return 1, 0
    return slices, max(1, shape.skip_steps // each)


def _stages(shape: Shape, rows: int, columns: int, card: Card) -> int:
    """Steps that are loaded at a time."""
    each = shape.step * (rows + columns) * shape.size
    fit = (card.shared_bytes - 4096) // each
    if fit < 1:
        raise CannotCut(f"{each} bytes of shared memory are wanted, got {card.shared_bytes}")
    return min(STAGES, fit)


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
    version = importlib.metadata.version("triton")
    if tuple(int(part) for part in version.split(".")[:2]) < LEAST_TRITON:
        return f"they need triton {'.'.join(map(str, LEAST_TRITON))} or newer, got {version}"
    if dtype != torch.float32:
        return f"they need a float32 network, got {str(dtype).removeprefix('torch.')}"
    if device.type == "cuda":
        capability = card_of(device).capability
        if capability < LEAST_CAPABILITY:
            need, got = (".".join(map(str, c)) for c in (LEAST_CAPABILITY, capability))
            return f"they need a GPU of compute capability {need} or newer, got {got}"
        return None
    return None if interpreted() else f"they need a CUDA device, the network is on {device}"
