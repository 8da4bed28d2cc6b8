"""The layers that a CPU trains faster compute what the library's do, where they pay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from asd_policy.networks import ConditionalUnet1D
from asd_policy.training import cpu_layers
from asd_policy.training.cpu_layers import faster_on_cpu

CPU = torch.device("cpu")


def gradients(network: torch.nn.Module, faster: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 8, 5, generator=generator, dtype=torch.float64)
    cond = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    network.zero_grad()
    with faster_on_cpu(CPU if faster else torch.device("cuda")):
        out = network(x, torch.arange(3), cond)
    out.square().sum().backward()
    return [out.detach(), *(weight.grad.clone() for weight in network.parameters())]


@pytest.mark.parametrize("kernel", [3, 5])
def test_results_and_gradients_are_the_library_s(
    monkeypatch: pytest.MonkeyPatch, kernel: int
) -> None:
    torch.manual_seed(0)
    network = ConditionalUnet1D(5, 4, 8, (8, 16), kernel).double()
    expected = gradients(network, faster=False)
    shapes: list[tuple[int, ...]] = []
    product = cpu_layers._convolve

    def counted(x: Tensor, weight: Tensor, *rest: object) -> Tensor:
        shapes.append(tuple(weight.shape))
        return product(x, weight, *rest)

    monkeypatch.setattr(cpu_layers, "_convolve", counted)
    monkeypatch.setattr(cpu_layers, "_PRODUCT_FROM", 16 * 8 * kernel)
    faster = gradients(network, faster=True)
    for ours, theirs in zip(faster, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert shapes
    assert min(out * inputs * k for out, inputs, k in shapes) >= 16 * 8 * kernel
    monkeypatch.setattr(cpu_layers, "_PRODUCT_FROM", 0)  # strides and single points, too
    for ours, theirs in zip(gradients(network, faster=True), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert {shape[2] for shape in shapes} == {1, 3, kernel}


def test_it_ends_with_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_layers, "_PRODUCT_FROM", 0)
    monkeypatch.delattr(cpu_layers, "_convolve")
    conv, x = torch.nn.Conv1d(2, 2, 1), torch.ones(1, 2, 3)
    with pytest.raises(NameError), faster_on_cpu(CPU):
        conv(x)
    conv(x)
