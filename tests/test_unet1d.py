"""The U-Net: published names and shapes, and its forward pass written a second time."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from asd_policy.networks import ConditionalUnet1D

# Low-dimensional Lift: 19 observed numbers, two steps of them, 7 actions; 256 for the timestep.
COND, EMBED, DIMS, ACTION = 2 * 19, 256, (256, 512, 1024), 7


def block_shapes(name: str, dim_in: int, dim_out: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for j, width in enumerate((dim_in, dim_out)):
        shapes[f"{name}.blocks.{j}.block.0.weight"] = (dim_out, width, 5)
        for norm_or_bias in ("block.0.bias", "block.1.weight", "block.1.bias"):
            shapes[f"{name}.blocks.{j}.{norm_or_bias}"] = (dim_out,)
    shapes[f"{name}.cond_encoder.1.weight"] = (2 * dim_out, EMBED + COND)
    shapes[f"{name}.cond_encoder.1.bias"] = (2 * dim_out,)
    if dim_in != dim_out:
        shapes[f"{name}.residual_conv.weight"] = (dim_out, dim_in, 1)
        shapes[f"{name}.residual_conv.bias"] = (dim_out,)
    return shapes


PUBLISHED = {
    "diffusion_step_encoder.1.weight": (1024, 256),
    "diffusion_step_encoder.1.bias": (1024,),
    "diffusion_step_encoder.3.weight": (256, 1024),
    "diffusion_step_encoder.3.bias": (256,),
    **block_shapes("down_modules.0.0", 7, 256),
    **block_shapes("down_modules.0.1", 256, 256),
    "down_modules.0.2.conv.weight": (256, 256, 3),
    "down_modules.0.2.conv.bias": (256,),
    **block_shapes("down_modules.1.0", 256, 512),
    **block_shapes("down_modules.1.1", 512, 512),
    "down_modules.1.2.conv.weight": (512, 512, 3),
    "down_modules.1.2.conv.bias": (512,),
    **block_shapes("down_modules.2.0", 512, 1024),
    **block_shapes("down_modules.2.1", 1024, 1024),
    **block_shapes("mid_modules.0", 1024, 1024),
    **block_shapes("mid_modules.1", 1024, 1024),
    **block_shapes("up_modules.0.0", 2048, 512),
    **block_shapes("up_modules.0.1", 512, 512),
    "up_modules.0.2.conv.weight": (512, 512, 4),
    "up_modules.0.2.conv.bias": (512,),
    **block_shapes("up_modules.1.0", 1024, 256),
    **block_shapes("up_modules.1.1", 256, 256),
    "up_modules.1.2.conv.weight": (256, 256, 4),
    "up_modules.1.2.conv.bias": (256,),
    "final_conv.0.block.0.weight": (256, 256, 5),
    "final_conv.0.block.0.bias": (256,),
    "final_conv.0.block.1.weight": (256,),
    "final_conv.0.block.1.bias": (256,),
    "final_conv.1.weight": (7, 256, 1),
    "final_conv.1.bias": (7,),
}


def test_state_dict_has_the_published_names_and_shapes() -> None:
    with torch.device("meta"):
        network = ConditionalUnet1D(ACTION, COND, EMBED, DIMS)
    assert {k: tuple(v.shape) for k, v in network.state_dict().items()} == PUBLISHED
    assert not list(network.buffers())


def tiny() -> ConditionalUnet1D:
    torch.manual_seed(0)
    network = ConditionalUnet1D(3, 5, 8, (8, 16, 24), kernel_size=3, n_groups=4).double().eval()
    for parameter in network.parameters():  # norms start at 1 and 0, which would hide them
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network


class Functional:
    """The same network as functions of a state dictionary."""

    def __init__(self, state: dict[str, Tensor], embed: int, groups: int, levels: int) -> None:
        self.state, self.embed, self.groups, self.levels = state, embed, groups, levels

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def convolve(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        pad = weight.shape[-1] // 2
        return F.conv1d(x, weight, self.state[f"{name}.bias"], stride=stride, padding=pad)

    def normalized(self, name: str, x: Tensor) -> Tensor:
        grouped = x.reshape(len(x), self.groups, -1)
        spread = grouped.var(-1, unbiased=False, keepdim=True)
        flat = (grouped - grouped.mean(-1, keepdim=True)) / (spread + 1e-5).sqrt()
        scale, shift = (self.state[f"{name}.{k}"][None, :, None] for k in ("weight", "bias"))
        return flat.reshape(x.shape) * scale + shift

    def convblock(self, name: str, x: Tensor) -> Tensor:
        return mish(self.normalized(f"{name}.block.1", self.convolve(f"{name}.block.0", x)))

    def residual(self, name: str, x: Tensor, cond: Tensor) -> Tensor:
        film = self.linear(f"{name}.cond_encoder.1", mish(cond))
        width = film.shape[1] // 2
        h = self.convblock(f"{name}.blocks.0", x)
        h = h * film[:, :width, None] + film[:, width:, None]
        h = self.convblock(f"{name}.blocks.1", h)
        known = f"{name}.residual_conv.weight" in self.state
        return h + (self.convolve(f"{name}.residual_conv", x) if known else x)

    def step_embedding(self, timesteps: Tensor) -> Tensor:
        half = self.embed // 2
        rates = [math.exp(-math.log(10000) * i / (half - 1)) for i in range(half)]
        angles = timesteps.double()[:, None] * torch.tensor(rates, dtype=torch.float64)
        h = torch.cat([angles.sin(), angles.cos()], 1)
        h = mish(self.linear("diffusion_step_encoder.1", h))
        return self.linear("diffusion_step_encoder.3", h)

    def __call__(self, x: Tensor, timesteps: Tensor, cond: Tensor) -> Tensor:
        cond = torch.cat([self.step_embedding(timesteps), cond], 1)
        h, skips = x.mT, []
        for i in range(self.levels):
            for j in range(2):
                h = self.residual(f"down_modules.{i}.{j}", h, cond)
            skips.append(h)
            if i < self.levels - 1:
                h = self.convolve(f"down_modules.{i}.2.conv", h, stride=2)
        for i in range(2):
            h = self.residual(f"mid_modules.{i}", h, cond)
        for i in range(self.levels - 1):
            h = torch.cat([h, skips.pop()], 1)
            for j in range(2):
                h = self.residual(f"up_modules.{i}.{j}", h, cond)
            up = f"up_modules.{i}.2.conv"
            weight, bias = self.state[f"{up}.weight"], self.state[f"{up}.bias"]
            h = F.conv_transpose1d(h, weight, bias, stride=2, padding=1)
        h = self.convblock("final_conv.0", h)
        return self.convolve("final_conv.1", h).mT


def mish(x: Tensor) -> Tensor:
    return x * torch.tanh(torch.log1p(torch.exp(x)))


@torch.no_grad()
def test_forward_is_the_functional_form() -> None:
    network = tiny()
    second = Functional(network.state_dict(), embed=8, groups=4, levels=3)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((4, 12, 3), generator=generator, dtype=torch.float64)
    cond = torch.randn((4, 5), generator=generator, dtype=torch.float64)
    timesteps = torch.tensor([0, 3, 57, 99])
    ours = network(x, timesteps, cond)
    assert ours.shape == (4, 12, 3)
    torch.testing.assert_close(ours, second(x, timesteps, cond), rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("length", [4, 16])
def test_forward_is_finite_and_rows_are_independent(length: int) -> None:
    network = tiny().float()
    generator = torch.Generator().manual_seed(1)
    x = 5 * torch.randn((6, length, 3), generator=generator)
    cond, timesteps = torch.randn((6, 5), generator=generator), torch.arange(6) * 15
    out = network(x, timesteps, cond)
    assert out.shape == x.shape
    assert bool(torch.isfinite(out).all())
    for i in range(6):
        row = network(x[i : i + 1], timesteps[i : i + 1], cond[i : i + 1])
        torch.testing.assert_close(row[0], out[i], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(network(x, timesteps + 1, cond), out)
    assert not torch.allclose(network(x, timesteps, cond + 1), out)


@torch.no_grad()
def test_unconditional() -> None:
    network = ConditionalUnet1D(2, 0, 8, (8,), n_groups=4)
    assert network(torch.zeros(3, 5, 2), torch.arange(3)).shape == (3, 5, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 4}, "kernel_size must be odd, got 4"),
        ({"n_groups": 3}, r"must be multiples of n_groups=3, got \(8, 16\)"),
        ({"down_dims": ()}, "must be multiples of n_groups=4"),
        ({"diffusion_step_embed_dim": 7}, "even dimension of 4 or more, got 7"),
        ({"diffusion_step_embed_dim": 2}, "even dimension of 4 or more, got 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options: dict, message: str) -> None:
    base = {"diffusion_step_embed_dim": 8, "down_dims": (8, 16), "n_groups": 4}
    with pytest.raises(ValueError, match=message):
        ConditionalUnet1D(2, 3, **(base | options))
