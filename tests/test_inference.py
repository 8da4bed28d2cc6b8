"""The inference form of the U-Net equals the U-Net, in every architecture that one allows."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from asd_policy.networks import ConditionalUnet1D, InferenceUnet1D, products
from asd_policy.networks.fused import LEAST_KERNEL
from asd_policy.networks.openvino_layers import missing
from asd_policy.networks.prepare import PreparedUnet1D, prepare
from asd_policy.networks.products import mish

TIMESTEPS = torch.tensor([99, 66, 40, 7, 0])
OPENVINO = pytest.param(
    "openvino", marks=pytest.mark.skipif(missing() is not None, reason="OpenVINO is not installed")
)
BATCH, ROWS = 3, 4


@dataclass(frozen=True)
class Architecture:
    """A network and the length of its chunks."""

    down_dims: tuple[int, ...]
    kernel_size: int = 5
    n_groups: int = 2
    input_dim: int = 3
    cond_dim: int = 5
    length: int = 8

    def network(self, dtype: torch.dtype = torch.float32) -> ConditionalUnet1D:
        torch.manual_seed(0)
        network = ConditionalUnet1D(
            self.input_dim, self.cond_dim, 8, self.down_dims, self.kernel_size, self.n_groups
        ).to(dtype)
        for parameter in network.parameters():  # group norms start as the identity
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
        return network.requires_grad_(False)


@st.composite
def architectures(draw: st.DrawFn, narrowest: int) -> Architecture:
    n_groups = draw(st.sampled_from((1, 2, 4)))
    widths = draw(st.lists(st.integers(narrowest, narrowest + 3), min_size=1, max_size=3))
    return Architecture(
        down_dims=tuple(n_groups * width for width in widths),
        kernel_size=draw(st.sampled_from((1, 3, 5, 7))),
        n_groups=n_groups,
        input_dim=draw(st.integers(1, 5)),
        cond_dim=draw(st.sampled_from((0, 1, 6))),
        length=2 ** (len(widths) - 1) * draw(st.integers(1, 5)),
    )


SMALL = Architecture((8, 16))


def problem(
    architecture: Architecture, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points of ROWS rows, their steps and chains, the chains' conditions."""
    x = torch.randn(ROWS, architecture.length, architecture.input_dim, dtype=dtype)
    steps = torch.randint(len(TIMESTEPS), (ROWS,))
    chains = torch.randint(BATCH, (ROWS,))
    return x, steps, chains, torch.randn(BATCH, architecture.cond_dim, dtype=dtype)


def both(
    network: ConditionalUnet1D, prepared: InferenceUnet1D, given: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """What the network says, and what its inference form says."""
    x, steps, chains, cond = given
    conditional = cond.shape[1] > 0
    expected = network(x, TIMESTEPS[steps], cond[chains] if conditional else None)
    part = prepared.condition(cond if conditional else None, BATCH)
    return expected, prepared(x, prepared.timestep_film[steps] + part[chains])


def check_equal(architecture: Architecture, layers: str, dtype: torch.dtype) -> None:
    assume(layers == "products" or architecture.kernel_size >= LEAST_KERNEL)
    network = architecture.network(dtype)
    prepared = InferenceUnet1D(network, TIMESTEPS, layers=layers)
    expected, found = both(network, prepared, problem(architecture, dtype))
    assert found.dtype == dtype
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5}[dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("layers", ["products", "fused"])
@settings(max_examples=40, deadline=None)
@given(architecture=architectures(narrowest=1))
def test_equals_the_network(architecture: Architecture, layers: str) -> None:
    check_equal(architecture, layers, torch.float64)


@pytest.mark.parametrize("layers", ["products", "fused", OPENVINO])
@settings(max_examples=20, deadline=None)
@given(architecture=architectures(narrowest=8))
def test_equals_the_network_in_float32(architecture: Architecture, layers: str) -> None:
    """Group norm divides by the spread of a group; that of two numbers may be a rounding error."""
    check_equal(architecture, layers, torch.float32)


@settings(max_examples=20, deadline=None)
@given(architecture=architectures(narrowest=8), bf16=st.booleans())
def test_matrices_laid_out_for_good_give_the_same(architecture: Architecture, bf16: bool) -> None:
    network = architecture.network()
    precision, tolerance = ("bf16", 0.02) if bf16 else ("fp32", 1e-5)
    prepared = InferenceUnet1D(network, TIMESTEPS, precision)
    given = problem(architecture, torch.float32)
    expected = both(network, prepared, given)[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "_PACKED_FROM", 0)
        products.pack(prepared)
        products.pack(prepared)  # changes nothing
    found = both(network, prepared, given)[1]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    dtype = torch.bfloat16 if bf16 else torch.float32
    assert packed(prepared) == products._packs(torch.device("cpu"), dtype)


def packed(prepared: InferenceUnet1D) -> bool:
    """Whether every matrix in it is laid out for good."""
    layers = [m for m in prepared.modules() if isinstance(m, products.Product)]
    return all(layer._packed is not None for layer in layers)


def test_only_large_matrices_are_laid_out_for_good_in_fp32() -> None:
    network = SMALL.network()
    for precision in ("fp32", "bf16"):
        prepared = prepare(network, TIMESTEPS, precision)
        assert isinstance(prepared, PreparedUnet1D)
        large = precision == "bf16" and products._packs(torch.device("cpu"), torch.bfloat16)
        assert packed(prepared.unet) == large


@pytest.mark.parametrize("lacking", ["oneDNN", "AVX-512"])
def test_without_those_products_all_goes_on_as_before(
    lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lacking == "oneDNN":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    else:
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    prepared = prepare(SMALL.network(), TIMESTEPS, "bf16")
    assert isinstance(prepared, PreparedUnet1D)
    assert not packed(prepared.unet)


@pytest.mark.parametrize("rows", [1, 2, 9, 70])
def test_equals_the_network_at_other_sizes(rows: int) -> None:
    """Sizes on both sides of where Mish changes its form, and the default widths' layouts."""
    network = Architecture((32, 64, 128), n_groups=8, input_dim=7, length=16).network()
    prepared = InferenceUnet1D(network, TIMESTEPS)
    x, cond = torch.randn(rows, 16, 7), torch.randn(1, 5)
    expected = network(x, TIMESTEPS[[2] * rows], cond.expand(rows, -1))
    found = prepared(x, (prepared.timestep_film[2] + prepared.condition(cond, 1)).expand(rows, -1))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_equals_the_network_where_weights_are_large() -> None:
    network = Architecture((512,), n_groups=8, kernel_size=9, length=4).network()
    prepared = InferenceUnet1D(network, TIMESTEPS)
    expected, found = both(
        network, prepared, problem(Architecture((512,), length=4), torch.float32)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [10, 20_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mish(size: int, dtype: torch.dtype) -> None:
    x = torch.linspace(-120, 120, size, dtype=dtype)
    expected = torch.nn.functional.mish(x)
    tolerance = 4 * torch.finfo(dtype).eps
    error = (mish(x.clone()) - expected).abs() / (1 + x.abs())
    assert error.max() <= tolerance
    assert mish(torch.full((size,), 1e4, dtype=dtype)).eq(1e4).all()


@pytest.mark.parametrize("layers", ["products", "fused"])
def test_bf16_is_close(layers: str) -> None:
    """Within 5% of the output's size: 8 significant bits, rounded in some 15 layers."""
    network = Architecture((16, 32), n_groups=4).network()
    prepared = InferenceUnet1D(network, TIMESTEPS, "bf16", layers)
    x, steps, chains, cond = problem(SMALL, torch.float32)
    film = prepared.timestep_film[steps] + prepared.condition(cond, BATCH)[chains]
    expected = network(x, TIMESTEPS[steps], cond[chains])
    found = prepared(x, film)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
    assert not torch.equal(found, expected)


@pytest.mark.parametrize("layers", ["products", OPENVINO])
def test_rows_do_not_depend_on_each_other(layers: str) -> None:
    network = SMALL.network()
    prepared = InferenceUnet1D(network, TIMESTEPS, layers=layers)
    x, steps, chains, cond = problem(SMALL, torch.float32)
    film = prepared.timestep_film[steps] + prepared.condition(cond, BATCH)[chains]
    alone = torch.cat([prepared(x[i : i + 1], film[i : i + 1]) for i in range(ROWS)])
    together = prepared(x, film)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    x[1:], film[1:] = 1e6, -1e6
    torch.testing.assert_close(prepared(x, film)[0], together[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layers", ["products", OPENVINO])
def test_arguments_are_left_as_they_are_and_calls_repeat(layers: str) -> None:
    prepared = InferenceUnet1D(SMALL.network(), TIMESTEPS, layers=layers)
    x, steps, _, _ = problem(SMALL, torch.float32)
    film = prepared.timestep_film[steps]
    x_before, film_before = x.clone(), film.clone()
    first = prepared(x, film)
    kept = first.clone()
    assert torch.equal(prepared(x, film), kept)
    prepared(x + 1, film)
    assert torch.equal(first, kept)
    assert torch.equal(x, x_before)
    assert torch.equal(film, film_before)


@pytest.mark.parametrize("layers", ["products", OPENVINO])
def test_strided_input(layers: str) -> None:
    prepared = InferenceUnet1D(SMALL.network(), TIMESTEPS, layers=layers)
    x, steps, _, _ = problem(SMALL, torch.float32)
    film = prepared.timestep_film[steps]
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    repeated = torch.stack([film, film], 2).flatten(1)[:, ::2]
    torch.testing.assert_close(prepared(strided, repeated), prepared(x, film))


@pytest.mark.parametrize("layers", ["products", "fused", OPENVINO])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_training_the_network_changes_nothing(layers: str, kernel_size: int) -> None:
    architecture = Architecture((8, 16), kernel_size)
    network = architecture.network()
    prepared = InferenceUnet1D(network, TIMESTEPS, layers=layers)
    given = problem(architecture, torch.float32)
    before = both(network, prepared, given)[1]
    for parameter in network.parameters():
        parameter.data.mul_(2)
    expected, after = both(network, prepared, given)
    assert torch.equal(after, before)
    assert not torch.allclose(expected, before, atol=1e-2)


def test_biases_are_in_the_table_alone() -> None:
    prepared = InferenceUnet1D(SMALL.network(), TIMESTEPS)
    assert not prepared.condition(torch.zeros(BATCH, 5), BATCH).any()
    unconditional = InferenceUnet1D(Architecture((8, 16), cond_dim=0).network(), TIMESTEPS)
    assert unconditional.condition(None, 2).shape == (2, unconditional.timestep_film.shape[1])
    # Σ 2·out_channels: two blocks of 8 and two of 16 down, two of 16 in the middle, two of 8 up.
    assert unconditional.timestep_film.shape == (len(TIMESTEPS), 2 * (2 * 8 + 4 * 16 + 2 * 8))


@pytest.mark.parametrize("layers", ["products", OPENVINO])
def test_takes_no_gradients_and_works_in_inference_mode(layers: str) -> None:
    network = SMALL.network().requires_grad_(True)
    prepared = InferenceUnet1D(network, TIMESTEPS, layers=layers)
    x, steps, _, _ = problem(SMALL, torch.float32)
    film = prepared.timestep_film[steps]
    assert not any(p.requires_grad for p in prepared.parameters())
    outside = prepared(x.requires_grad_(True), film)
    assert not outside.requires_grad
    with torch.inference_mode():
        inside = prepared(x, film)
    assert torch.equal(inside, outside)


@pytest.mark.slow
def test_the_trunk_is_one_graph() -> None:
    """No break and no dependence on data where it is traced: what compiling for CUDA needs."""
    network = SMALL.network()
    prepared = InferenceUnet1D(network, TIMESTEPS)
    x, steps, _, _ = problem(SMALL, torch.float32)
    film = prepared.timestep_film[steps]
    expected = prepared(x, film)
    prepared.trunk.compile(fullgraph=True, backend="eager")
    torch.testing.assert_close(prepared(x, film), expected)


def test_errors() -> None:
    network = SMALL.network()
    with pytest.raises(ValueError, match=r"precision must be one of .*'bf16'.*got 'fp16'"):
        InferenceUnet1D(network, TIMESTEPS, "fp16")
    with pytest.raises(ValueError, match="'tf32' needs a CUDA device, the network is on cpu"):
        InferenceUnet1D(network, TIMESTEPS, "tf32")
    with pytest.raises(ValueError, match=r"int64 of shape \(K,\), got torch.float32"):
        InferenceUnet1D(network, TIMESTEPS.float())
    with pytest.raises(ValueError, match=r"layers must be one of .*got 'convolutions'"):
        InferenceUnet1D(network, TIMESTEPS, layers="convolutions")
    with pytest.raises(
        ValueError, match=r"openvino .* of float32 on cpu, got 'bf16' of float32 on"
    ):
        InferenceUnet1D(network, TIMESTEPS, "bf16", "openvino")
    with pytest.raises(
        ValueError, match=r"openvino .* of float32 on cpu, got 'fp32' of float64 on"
    ):
        InferenceUnet1D(SMALL.network(torch.float64), TIMESTEPS, layers="openvino")
    pointwise = Architecture((8, 16), kernel_size=1).network()
    with pytest.raises(ValueError, match="fused layers need convolutions of 3 points, got 1"):
        InferenceUnet1D(pointwise, TIMESTEPS, layers="fused")
    prepared = InferenceUnet1D(network, TIMESTEPS)
    with pytest.raises(ValueError, match=r"condition must be \(3, 5\), got None"):
        prepared.condition(None, 3)
    with pytest.raises(ValueError, match=r"condition must be \(3, 5\), got \(2, 5\)"):
        prepared.condition(torch.zeros(2, 5), 3)
    with pytest.raises(ValueError, match=r"\(N, multiple of 2, 3\), got \(4, 7, 3\)"):
        prepared(torch.zeros(4, 7, 3), prepared.timestep_film[:4])
