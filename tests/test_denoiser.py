"""The network's output, from whatever it predicts to the clipped x̂0, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import asd_policy
from asd_policy import NonFiniteError, Schedule
from asd_policy.denoiser import Denoiser
from asd_policy.schedule import PREDICTION_TYPES
from reference import oracles

SHAPE = (3, 2)


def make(network, schedule: Schedule, cond: Tensor | None = None) -> Denoiser:  # type: ignore[no-untyped-def]
    return Denoiser(network, schedule, SHAPE, cond, torch.zeros(1, 6, dtype=torch.float64))


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_x0_of_any_rows_at_any_steps(kind: str, clip: bool) -> None:
    schedule = Schedule.ddpm(20, "linear", kind, clip_sample=clip, clip_range=0.7, beta_end=0.3)
    cond = torch.arange(4.0, dtype=torch.float64).unsqueeze(1)
    asked = []

    def network(x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
        assert cond is not None
        asked.append((x.clone(), timesteps, cond))
        return 0.3 * x + 0.1 * cond.unsqueeze(2) - 0.01 * timesteps.to(x).view(-1, 1, 1)

    x = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    steps, chains = torch.tensor([0, 19, 7, 7, 3]), torch.tensor([3, 0, 1, 2, 3])
    x0 = make(network, schedule, cond)(x, steps, chains)
    (points, timesteps, conditions) = asked[0]
    assert points.shape == (5, *SHAPE)
    assert timesteps.tolist() == [19, 0, 12, 12, 16]
    assert conditions.flatten().tolist() == [3, 0, 1, 2, 3]
    for row in range(5):
        prediction = 0.3 * x[row] + 0.1 * float(chains[row]) - 0.01 * float(timesteps[row])
        bar = float(schedule.alphas_cumprod[timesteps[row]])
        expected = oracles.x0_from(
            kind, x[row].numpy(), prediction.numpy(), bar, 0.7 if clip else None
        )
        np.testing.assert_allclose(x0[row], expected, atol=1e-12)
    assert (float(x0.abs().max()) <= 0.7) == clip


@pytest.mark.parametrize("sampler", ["asd", "ddpm", "ddim", "paradigms"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_network_that_is_not_finite_is_named_with_step_and_chain(
    bad: float, sampler: str
) -> None:
    """With step and chain. Infinities too, although clipping x̂0 would hide them."""
    schedule = Schedule.ddpm(10, clip_sample=True)

    def network(x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
        assert cond is not None
        out = torch.zeros_like(x)
        out[(timesteps == 6) & (cond[:, 0] == 2), 1, 0] = bad
        return out

    with pytest.raises(
        NonFiniteError, match=r"NaN or infinite value at step 3 \(timestep 6\) of chain 2"
    ):
        asd_policy.sample(
            network,
            schedule,
            shape=(4, *SHAPE),
            cond=torch.arange(4.0).unsqueeze(1),
            sampler=sampler,
        )


def test_infinities_of_both_signs_are_seen() -> None:
    """Their sum is a NaN, and a NaN's comparisons are false."""
    out = torch.tensor([[[torch.inf, -torch.inf], [0, 0], [0, 0]]], dtype=torch.float64)
    with pytest.raises(NonFiniteError, match="step 0"):
        make(lambda x, t, cond: out, Schedule.ddpm(4))(
            torch.zeros(1, 6, dtype=torch.float64), torch.tensor([0]), torch.tensor([0])
        )


def test_large_finite_values_pass() -> None:
    """Their sum overflows, and is not what is checked."""
    out = torch.full((1, *SHAPE), 1.5e308, dtype=torch.float64)
    schedule = Schedule.ddpm(4, prediction_type="sample")
    x0 = make(lambda x, t, cond: out, schedule)(
        torch.zeros(1, 6, dtype=torch.float64), torch.tensor([0]), torch.tensor([0])
    )
    assert x0.tolist() == [[1.0] * 6]


def test_a_network_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape it is given, \(2, 3, 2\); got \(2, 3\)"):
        asd_policy.sample(
            lambda x, t, cond: x[..., 0], Schedule.ddpm(4), shape=(2, *SHAPE), sampler="ddpm"
        )


@pytest.mark.parametrize("sampler", ["ddpm", "asd", "asd-paper", "asd-rejoin"])
def test_a_network_that_answers_elsewhere_is_refused(sampler: str) -> None:
    """Its numbers' address would be read as one of the chains' device."""
    with pytest.raises(ValueError, match=r"answer where it is asked, on cpu; .* is on meta"):
        asd_policy.sample(
            lambda x, t, cond: x.to("meta"), Schedule.ddpm(4), shape=(2, *SHAPE), sampler=sampler
        )


def test_a_network_with_a_member_called_condition_is_still_a_network() -> None:
    """Only one that has both members of a prepared network is called as one."""

    class Module(torch.nn.Module):
        condition = "image"

        def forward(self, x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
            return torch.zeros_like(x)

    result = asd_policy.sample(Module(), Schedule.ddpm(5), shape=(2, *SHAPE), window=2)
    assert bool(torch.isfinite(result.sample).all())


def test_a_network_of_complex_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must return real numbers; got torch.complex64"):
        asd_policy.sample(
            lambda x, t, cond: x.to(torch.complex64), Schedule.ddpm(4), shape=(2, *SHAPE)
        )


@pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="no fbgemm")
def test_layers_that_round_the_rows_of_a_call_together_are_refused() -> None:
    """Quantized dynamically to int8; and those that are not (float16) are sampled."""
    network, row = torch.nn.Sequential(torch.nn.Linear(6, 6)), torch.full((1, 6), 0.01)

    def quantized(dtype: torch.dtype) -> torch.nn.Module:
        return torch.ao.quantization.quantize_dynamic(network, {torch.nn.Linear}, dtype)

    def sample(layers: torch.nn.Module) -> None:
        class Network(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layers = layers

            def forward(self, x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
                return self.layers(x)

        asd_policy.sample(Network(), Schedule.ddpm(5), shape=(1, 6), window=2)

    alone, together = (quantized(torch.qint8)(x)[0] for x in (row, torch.cat([row, 50 * row])))
    assert float((alone - together).abs().max()) > 1e-4
    with pytest.raises(ValueError, match=r"Linear 'layers\.0' rounds the rows of a call"):
        sample(quantized(torch.qint8))
    sample(quantized(torch.float16))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_network_of_another_type_is_told_which_chain_it_needs(dtype: torch.dtype) -> None:
    """In one sentence, where it does not convert what it is given."""
    layer = torch.nn.Conv1d(4, 4, 1).to(dtype)

    class Converts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
            return self.layer(x.to(dtype))

    class Takes(Converts):
        def forward(self, x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
            return self.layer(x)

    class Fails(Takes):
        def forward(self, x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
            raise RuntimeError("of its own")

    def draw(network: torch.nn.Module, dtype: torch.dtype | None = None) -> Tensor:
        kept = {"shape": (1, 4, 3), "seed": 0, "dtype": dtype}
        return asd_policy.sample(network, Schedule.ddpm(10), **kept).sample

    assert draw(Takes(), dtype).dtype == dtype
    assert draw(Converts()).dtype == torch.float32
    with pytest.raises(ValueError, match=rf"weights are {dtype} .*; expected dtype={dtype}, or"):
        draw(Takes())
    with pytest.raises(RuntimeError, match=r"^of its own$"):
        draw(Fails())


def test_conditions_of_another_type_than_the_network_are_named():
    """As `torch.as_tensor` makes them of what most simulators observe."""

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(7, 4)

        def forward(self, x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
            return self.layer(torch.cat([x, cond], 1))

    cond = torch.ones(1, 3, dtype=torch.float64)
    said = r"are torch.float32 and cond torch.float64.* expected cond.to\(torch.float32\), or"
    with pytest.raises(ValueError, match=said):
        asd_policy.sample(Network(), Schedule.ddpm(10), shape=(1, 4), cond=cond, seed=0)
