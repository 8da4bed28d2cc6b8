"""Checks that whole layers are the network, and that a kernel that is broken is found out.

``TRITON_INTERPRET=1 python -m reference.whole_cases`` prints a JSON object: the error by case. For
a fault that is planted, the case is that the comparison fails.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asd_policy.networks import ConditionalUnet1D, InferenceUnet1D, inference, tiling, whole

TIMESTEPS = torch.tensor([99, 40, 7, 0])
TOLERANCE = {"fp32": 2e-5, "tf32": 0.01, "bf16": 0.05}


@dataclass(frozen=True)
class Case:
    """A network, a call of it, and how its layers are cut.

    Attributes:
        rows: of a call. split: in several programs where there can be. tile: most
            rows of a tile.
    """

    down_dims: tuple[int, ...]
    kernel_size: int = 5
    n_groups: int = 2
    input_dim: int = 3
    length: int = 4
    rows: int = 3
    cond_dim: int = 2
    scales: bool = True
    precision: str = "fp32"
    split: bool = True
    tile: int = 64
    slices: int = 2  # of a product in the interpreter, which is slow

    def network(self, device: str) -> ConditionalUnet1D:
        torch.manual_seed(0)
        network = ConditionalUnet1D(
            self.input_dim, self.cond_dim, 8, self.down_dims, self.kernel_size, self.n_groups,
            self.scales,
        )  # fmt: skip
        for parameter in network.parameters():  # group norms start as the identity
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
        return network.to(device).requires_grad_(False)


CASES = {
    "two levels": Case((8, 16)),
    "not split": Case((8, 16), split=False, length=8),
    "many tiles": Case((8, 16), rows=7, tile=16),
    "one row": Case((16, 32), rows=1, n_groups=4),
    "kernel 3, odd sizes": Case((9, 15), 3, 3, 5, length=10, rows=2),
    "three levels": Case((6, 12, 24), n_groups=3, length=12, rows=2),
    "four levels, kernel 3": Case((4, 8, 12, 8), 3, length=8, rows=1),
    "one level, kernel 7": Case((8,), 7, length=3, rows=2),
    "one point": Case((8, 16), 1, rows=2),
    "wide action": Case((8, 16), input_dim=20, rows=2),
    "a skip as it is, of two parts": Case((16, 8), rows=2),
    "several groups a tile": Case((40,), n_groups=4, length=8, rows=2),
    "shifts only": Case((8, 16), scales=False, rows=2),
    "bf16": Case((16, 32), n_groups=4, precision="bf16"),
    "bf16, not split": Case((24, 48), n_groups=4, precision="bf16", split=False, length=8),
}
TWO_GROUPS_A_TILE = Case((8, 12), 3, 4, length=6, rows=3, tile=16)
FOUR_SLICES = dataclasses.replace(TWO_GROUPS_A_TILE, slices=4)  # two sums commute
FAULTS = {  # text of the kernel, and what it is broken to
    "a neighbour's group": ("// BLOCK_G, BLOCK_G)", "// (2 * BLOCK_G), 2 * BLOCK_G)"),
    "a tap missing at the end": ("(at < length)", "(at < length - 1)"),
    "a tap missing at the start": ("& (at >= 0)", "& (at >= 1)"),
    "a slice left out": ("sum_of_slices(at_ptr, 0, slices,", "sum_of_slices(at_ptr, 1, slices,"),
    "a slice of the skip left out": ("slices + skip_slices, real", "slices, real"),
    "a step left out": ("(last, slices) * steps // slices", "(last, slices) * steps // slices - 1"),
    "a stale counter": ("tl.zeros((256,), tl.int32)", "tl.full((256,), 1, tl.int32)"),
    "points that are not real": ("apart = tl.where(wanted, apart, 0.0)", "apart = apart"),
    "the first part twice": ("beyond = weight_ptr + own * BLOCK_K", "beyond = weight_ptr"),
    "the other phase": ("weight_ptr += phase.to", "weight_ptr += 0 * phase.to"),
    "no bias of the skip": ("+= bias.to(tl.float32)[None, :]\n    return", "+= 0.0\n    return"),
    "another sample's modulation": ("at = sample.to", "at = (sample // 2).to"),
}  # fmt: skip


@contextmanager
def cut(case: Case, device: str) -> Iterator[None]:
    kept = tiling.seconds, tiling.ROWS, tiling.MOST_SLICES
    sign = -1e3 if case.split else 1e3  # the more programs a tile has the better, or the worse
    tiling.seconds = lambda shape, cut, card: (
        sign * (cut.slices + cut.skip_slices) + cut.rows * cut.columns
    )
    tiling.ROWS = case.tile
    tiling.MOST_SLICES = case.slices if device == "cpu" else kept[2]
    tiling.tiling.cache_clear()
    try:
        yield
    finally:
        tiling.seconds, tiling.ROWS, tiling.MOST_SLICES = kept
        tiling.tiling.cache_clear()


def answers(case: Case, device: str, layers: str = "whole") -> tuple[Tensor, Tensor]:
    """What the network says, and what it says in this form."""
    network = case.network(device)
    prepared = InferenceUnet1D(network, TIMESTEPS.to(device), case.precision, layers)
    generator = torch.Generator().manual_seed(1)
    shape = case.rows, case.length, case.input_dim
    x = torch.randn(shape, generator=generator).to(device)
    cond = torch.randn(case.rows, case.cond_dim, generator=generator).to(device)
    steps = (torch.arange(case.rows) % len(TIMESTEPS)).to(device)
    with inference.tensor_cores(False):
        expected = network(x, TIMESTEPS.to(device)[steps], cond)
    film = prepared.timestep_film[steps] + prepared.condition(cond, case.rows)
    with cut(case, device):
        return expected, prepared(x, film)


def check(case: Case, device: str) -> None:
    """Raises AssertionError where the two differ."""
    expected, found = answers(case, device)
    error = float((found - expected).abs().max() / expected.abs().max())
    assert error < TOLERANCE[case.precision], error


def check_arrival(case: Case) -> None:
    """The same bits whichever program of a tile comes last."""
    from triton.runtime.interpreter import interpreter_builder as builder

    (_, forwards), forward = answers(case, "cpu"), builder.set_grid_idx

    def backward(*index: int) -> None:
        forward(*(size - 1 - i for size, i in zip(builder.grid_dim, index, strict=True)))

    builder.set_grid_idx = backward
    try:
        _, backwards = answers(case, "cpu")
    finally:
        builder.set_grid_idx = forward
    assert torch.equal(forwards, backwards), float((forwards - backwards).abs().max())


def check_fault(name: str, case: Case) -> None:
    """Raises AssertionError where the comparison does not notice."""
    old, new = FAULTS[name]
    text = Path(str(whole.source().__file__)).read_text(encoding="utf-8")
    assert old in text, f"the kernel has no {old!r}"
    kept = whole.source
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "broken_kernel.py"
        path.write_text(text.replace(old, new), encoding="utf-8")
        spec = importlib.util.spec_from_file_location("broken_kernel", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        whole.source = lambda: module
        try:
            check(case, "cpu")
        except AssertionError:
            return
        finally:
            whole.source = kept
    raise AssertionError("it was not noticed")


def checks() -> dict[str, Callable[[], None]]:
    found: dict[str, Callable[[], None]] = {
        name: lambda case=case: check(case, "cpu") for name, case in CASES.items()
    }
    found["faultless"] = lambda: check(TWO_GROUPS_A_TILE, "cpu")
    found["any order of arrival"] = lambda: check_arrival(FOUR_SLICES)
    for fault in FAULTS:
        found[f"fault: {fault}"] = lambda fault=fault: check_fault(fault, TWO_GROUPS_A_TILE)
    return found


def main() -> None:
    torch.set_num_threads(1)
    report: dict[str, Any] = {}
    for name, work in checks().items():
        begun = time.perf_counter()
        try:
            work()
            report[name] = {"seconds": time.perf_counter() - begun}
        except Exception:
            report[name] = {"error": traceback.format_exc()}
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
