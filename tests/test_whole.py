"""Whole layers, one launch each, are the network; they fail by name; and they compile for a GPU.

As in ``engine/test_triton.py``, the interpreter and the compiler run in processes of their own.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from asd_policy.errors import LayersError
from asd_policy.networks import ConditionalUnet1D, InferenceUnet1D, inference, tiling, whole
from asd_policy.networks.prepare import PreparedUnet1D
from asd_policy.networks.tiling import CannotCut, Card, Shape
from reference import whole_cases, whole_launches
from reference.modules import run_module

TIMESTEPS = torch.tensor([99, 40, 0])
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    cache = tmp_path_factory.mktemp("triton")
    return run_module("reference.whole_cases", cache=cache, TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.parametrize("name", whole_cases.checks())
def test_whole_layers_are_the_network(name: str, report: dict[str, Any]) -> None:
    """And a kernel with a fault in it is not."""
    assert "error" not in report[name], report[name]["error"]


@pytest.fixture(scope="module", params=["", "pdl"])
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, Any]]:
    words = ("reference.whole_launches", *filter(None, [request.param]))
    return request.param, run_module(*words, cache=tmp_path_factory.mktemp("triton"))


@needs_triton
@pytest.mark.slow
def test_every_kind_of_layer_compiles_for_a_gpu(compiled: tuple[str, dict[str, Any]]) -> None:
    """For compute capability 8.0 and 9.0, with no more shared memory than there is."""
    mode, kernels = compiled
    assert kernels
    for name, kernel in kernels.items():
        assert "error" not in kernel, (name, kernel["error"])
        assert kernel["shared"] <= kernel["limit"], (name, kernel)
        assert kernel["waits"] == bool(mode), name


@pytest.mark.parametrize(
    ("down_dims", "launches"), [((256, 512, 1024), 30), ((32, 64), 20), ((8, 16, 24, 32), 40)]
)
def test_a_layer_is_a_launch(down_dims: tuple[int, ...], launches: int) -> None:
    """24, 16 or 32 convolutions of blocks, one for each change of length, the last block's two."""
    found = whole_launches.launches(whole_launches.unet(down_dims), 3, 16, "bf16")
    assert len(found) == launches
    assert found[0].constants["CLEAR"]
    assert not any(one.constants["CLEAR"] for one in found[1:])


@pytest.mark.parametrize("rows", [1, 2, 8, 32, 128, 4096])
@pytest.mark.parametrize("down_dims", [(48, 96, 192), (256, 512, 1024), (512, 1024, 2048)])
@pytest.mark.parametrize("card", [whole_launches.A100, whole_launches.H100])
def test_tiles_fit_the_card(card: Card, down_dims: tuple[int, ...], rows: int) -> None:
    """Split in no more programs than run at once, and counters for all of them."""
    for one in whole_launches.launches(whole_launches.unet(down_dims), rows, 16, "tf32", card):
        across, tiles, slices = one.grid
        constants = one.constants
        assert constants["SPLIT"] == (slices > 1)
        if constants["SPLIT"]:
            assert across * tiles * slices <= card.multiprocessors
        size = 4 * constants["BLOCK_K"] * (constants["BLOCK_M"] + constants["BLOCK_N"])
        assert size * constants["num_stages"] <= card.shared_bytes
        assert constants["BLOCK_M"] * constants["BLOCK_N"] <= tiling.LARGEST_TILE


def test_every_row_and_step_is_in_one_program() -> None:
    card = Card()
    for samples in (1, 3, 7, 40, 500):
        shape = Shape(samples, 10, 1, 96, 16, 25, 6, 64, 2)
        cut = tiling.tiling(shape, card)
        assert cut.rows * (cut.block_m // 16) >= samples
        assert cut.columns * cut.block_n >= 96
        ends = [s * 25 // cut.slices for s in range(cut.slices + 1)]
        assert ends[0] == 0
        assert ends[-1] == 25
        assert all(a < b for a, b in itertools.pairwise(ends))


def test_shapes_that_a_program_cannot_hold_are_named() -> None:
    with pytest.raises(CannotCut, match="1024 points of a group of 128 channels are too many"):
        tiling.tiling(Shape(1, 1024, 1, 1024, 128, 80, 0, 64, 2), Card())
    least = Card(80, 36864 + 4096, (8, 0))  # larger tiles do not fit
    assert tiling.tiling(Shape(64, 16, 1, 1024, 128, 80, 0, 64, 4), least).block_m == 16
    small = Card(80, 20000, (8, 0))
    with pytest.raises(CannotCut, match=r"36864 bytes of shared memory are wanted, got 20000"):
        tiling.tiling(Shape(1, 16, 1, 1024, 128, 80, 0, 64, 4), small)


def tiny() -> ConditionalUnet1D:
    torch.manual_seed(0)
    return ConditionalUnet1D(3, 2, 8, (8, 16), 5, 2).requires_grad_(False)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("missing", "triton is not installed"),
        ("old", r"they need triton 3\.2 or newer, got 3\.1\.0"),
        ("card", r"they need a GPU of compute capability 8\.0 or newer, got 7\.5"),
        ("cpu", "they need a CUDA device, the network is on cpu"),
        ("float64", "they need a float32 network, got float64"),
    ],
)
def test_why_they_cannot_be_had(change: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if change == "missing" else n)
    version = "3.1.0" if change == "old" else "3.6.0"  # of whatever package it comes in
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=version))
    monkeypatch.setattr(tiling, "card_of", lambda device: Card(72, 65536, (7, 5)))
    device = torch.device("cpu" if change == "cpu" else "cuda")
    dtype = torch.float64 if change == "float64" else torch.float32
    found = tiling.why_not(device, dtype)
    assert found is not None
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(found)
    if change == "cpu":
        with pytest.raises(ValueError, match=f"whole layers cannot be had: {why}"):
            InferenceUnet1D(tiny(), TIMESTEPS, layers="whole")


def evaluate(prepared: PreparedUnet1D) -> torch.Tensor:
    x = torch.linspace(-1, 1, 24).view(2, 4, 3)
    condition = prepared.condition(torch.ones(1, 2), 1)
    return prepared.evaluate(x, torch.tensor([0, 2]), torch.zeros(2).long(), condition)


@needs_triton
def test_layers_that_fail_at_a_call_are_replaced_by_name_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A launch without a device fails. What was captured of them before is refreshed as well."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    choose = inference._choose
    monkeypatch.setattr(
        inference, "_choose",
        lambda layers, *rest: ("whole", None) if layers == "auto" else choose(layers, *rest),
    )  # fmt: skip
    network = tiny()
    expected = evaluate(PreparedUnet1D(network, TIMESTEPS, layers="products"))
    prepared = PreparedUnet1D(network, TIMESTEPS)
    first = prepared.unet
    assert prepared.layers == "whole"
    with pytest.warns(UserWarning, match="using fused layers: whole layers failed"):
        found = evaluate(prepared)
    torch.testing.assert_close(found, expected)
    assert prepared.layers == "fused"
    assert prepared.fallback is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copied = copy.deepcopy(prepared)
        for parameter in network.parameters():
            parameter.mul_(1.5)
        monkeypatch.setattr(inference, "_choose", lambda layers, *rest: (layers, None))
        changed = evaluate(prepared)
    assert copied.layers == "fused"
    assert not torch.allclose(changed, expected)
    again = InferenceUnet1D(network, TIMESTEPS, layers="whole")
    for ours, theirs in zip(first.buffers(), again.buffers(), strict=True):
        assert torch.equal(ours, theirs)


@needs_triton
def test_layers_that_were_asked_for_are_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(inference, "why_not", lambda device, dtype: None)
    prepared = PreparedUnet1D(tiny(), TIMESTEPS, layers="whole")
    with pytest.raises(LayersError, match="whole layers failed: "):
        evaluate(prepared)


def test_running_out_of_memory_is_no_reason_to_replace_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*arguments: Any) -> None:
        raise torch.cuda.OutOfMemoryError("full")

    monkeypatch.setattr(inference, "why_not", lambda device, dtype: None)
    monkeypatch.setattr(whole, "launch", full)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        evaluate(PreparedUnet1D(tiny(), TIMESTEPS, layers="whole"))


def test_what_auto_does_without_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "ON_CUDA", "whole")
    like = torch.empty(0, device="meta")
    assert inference._choose("auto", like, 5) == ("products", None)

    class OnGpu:
        device, dtype = torch.device("cuda"), torch.float32

    monkeypatch.setattr(inference, "why_not", lambda device, dtype: "an old card")
    assert inference._choose("auto", OnGpu(), 5)[1] == "an old card"  # type: ignore[arg-type]
    monkeypatch.setattr(inference, "why_not", lambda device, dtype: None)
    assert inference._choose("auto", OnGpu(), 5) == ("whole", None)  # type: ignore[arg-type]
