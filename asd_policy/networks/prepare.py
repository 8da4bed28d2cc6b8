"""From a trained network to the form that is sampled: cached conditioning, precision, compiling."""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn

from asd_policy.ambient import untouched
from asd_policy.errors import InputError, LayersError
from asd_policy.networks.fused import LEAST_KERNEL
from asd_policy.networks.inference import InferenceUnet1D
from asd_policy.networks.layers import check_layers, is_plain
from asd_policy.networks.openvino_layers import CompiledTrunk
from asd_policy.networks.others import OthersUnet1D
from asd_policy.networks.products import Product, pack
from asd_policy.networks.unet1d import ConditionalResidualBlock1D, ConditionalUnet1D, Upsample1d
from asd_policy.networks.weights import Watch


class PreparedUnet1D:
    """A U-Net as samplers call it: by step and chain, its conditions given once for a chunk.

    The network may be trained on meanwhile: where its weights have changed, they are copied again,
    in place, before the next chunk (so that captured graphs go on). What has changed since, in the
    middle of a chunk, is seen by the next one.

    Args:
        network: which is left as it is. timesteps: (K,) int64. precision: of the copy.
        compile: run it through ``torch.compile`` at its first calls.
        layers: as for ``InferenceUnet1D``. Where "auto" must do without its first choice, at once
            or at the first call of a shape that the GPU does not take, ``fallback`` says why, and a
            warning does, once.
    """

    def __init__(
        self,
        network: ConditionalUnet1D | OthersUnet1D,
        timesteps: Tensor,
        precision: str = "fp32",
        compile: bool = False,
        layers: str = "auto",
    ) -> None:
        self.network, self.compile = network, compile
        self._timesteps, self._precision, self._asked = timesteps, precision, layers
        self._watch = Watch(network)
        self.unet = self._copy("products" if compile else layers)
        self._left: list[InferenceUnet1D] = []  # forms that captured calls may go on with
        self.fallback: str | None = None
        if self.unet.fallback:
            self._say_fallback(self.unet.fallback)
        if compile:
            self._compile()

    @untouched(gradients=False)
    def _copy(self, layers: str) -> InferenceUnet1D:
        network = self.network
        plain = network.as_unet() if isinstance(network, OthersUnet1D) else network
        unet = InferenceUnet1D(plain, self._timesteps, self._precision, layers).eval()
        if not self.compile:
            pack(unet)
        return unet

    def _compile(self) -> None:
        # The number of rows stays a symbol: windows and batches of every size are two
        # compilations (one row, and more), and none comes as a surprise in a control loop.
        self.unet.trunk.compile(dynamic=True, fullgraph=True)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.compile:  # what was compiled is not copied
            self._compile()

    @property
    def precision(self) -> str:
        return self.unet.precision

    @property
    def layers(self) -> str:
        """The form of its layers: "products", "fused" or "whole"."""
        return self.unet.layers

    def in_openvino(self) -> PreparedUnet1D:
        """The same network in another copy, which OpenVINO compiles."""
        return PreparedUnet1D(self.network, self._timesteps, self._precision, layers="openvino")

    def condition(self, cond: Tensor | None, batch: int) -> Tensor:
        """(B, global_cond_dim), or None → (B, F), the observations' part of every modulation.

        Raises:
            ValueError: a condition of another shape, or a network that has become another one.
        """
        self.refresh()
        return self.unet.condition(cond, batch)

    def refresh(self) -> None:
        """Copy the network's weights again, if they have changed.

        Raises:
            ValueError: its layers or their sizes are others now, or it was moved.
        """
        if self._watch.changed():
            seen = Watch(self.network)  # what changes while they are copied is noticed later
            for unet in (self.unet, *self._left):
                _copy_into(unet, self._copy(unet.layers))
            self._watch = seen

    def evaluate(self, x: Tensor, steps: Tensor, chains: Tensor, condition: Tensor) -> Tensor:
        """(N, T, input_dim) points at (N,) steps of (N,) chains → the prediction."""
        film = self.unet.timestep_film[steps]
        film = film + (condition if len(condition) == 1 else condition[chains])
        x = x.to(film.dtype)  # the network's; a chain's is float32
        try:
            return self.unet(x, film)
        except LayersError as error:
            if self._asked != "auto":
                raise
            self._left.append(self.unet)
            self.unet = self._copy("products" if self.unet.kernel_size < LEAST_KERNEL else "fused")
            self._say_fallback(str(error))
            return self.unet(x, film)

    def _say_fallback(self, why: str) -> None:
        self.fallback = why
        warnings.warn(f"using {self.unet.layers} layers: {why}", stacklevel=3)


def _copy_into(unet: InferenceUnet1D, fresh: InferenceUnet1D) -> None:
    """In place: compiled and captured calls read the weights where they lie."""
    ours, new = _tensors(unet), _tensors(fresh)
    if [_form(name, t) for name, t in ours] != [_form(name, t) for name, t in new]:
        raise InputError(
            "the network has other layers, sizes or another device than when it was prepared; "
            "expected other weights at most: make the policy or engine again"
        )
    with torch.no_grad():
        for (_, tensor), (_, value) in zip(ours, new, strict=True):
            tensor.copy_(value)
    for part, other in zip(unet.modules(), fresh.modules(), strict=True):
        if isinstance(part, (Product, CompiledTrunk)):
            part.take(other)


def _tensors(unet: InferenceUnet1D) -> list[tuple[str, Tensor]]:
    return [*unet.named_parameters(), *unet.named_buffers()]


def _form(name: str, tensor: Tensor) -> tuple[object, ...]:
    return name, tensor.shape, tensor.dtype, tensor.device


def copied_bytes(
    network: ConditionalUnet1D | OthersUnet1D, steps: int, precision: str = "fp32"
) -> int:
    """What a copy in the form for sampling takes, for so many steps of a chain."""
    plain = network.as_unet() if isinstance(network, OthersUnet1D) else network
    size = next(plain.parameters()).element_size()
    weights = sum(p.numel() for p in plain.parameters())
    weights -= sum(p.numel() for p in plain.diffusion_step_encoder.parameters())
    films = 0
    for block in plain.modules():
        if isinstance(block, ConditionalResidualBlock1D):
            linear = cast(nn.Linear, block.cond_encoder[1])
            weights -= linear.weight.numel() + linear.out_features
            films += linear.out_features * (1 if block.scales else 2)
        elif isinstance(block, Upsample1d):  # two outputs a product
            weights += block.conv.out_channels
    films *= steps + plain.global_cond_dim  # a row for each step, and what conditions make of it
    return films * size + weights * (2 if precision == "bf16" else size)


def _why_not(network: nn.Module) -> str | None:
    """Why a network is sampled as it is; None for a U-Net that has a form for sampling."""
    if isinstance(network, OthersUnet1D) and is_plain(network, OthersUnet1D):
        return None
    if not isinstance(network, ConditionalUnet1D):
        return f"got a {type(network).__name__}"
    try:
        check_layers(network)
    except ValueError as error:
        return str(error)
    return None


def prepare(
    network: nn.Module,
    timesteps: Tensor,
    precision: str = "fp32",
    compile: bool = False,
    layers: str = "auto",
) -> PreparedUnet1D | nn.Module:
    """A network ready to be sampled at the timesteps of one schedule.

    Args:
        network: on its device; neither frozen nor changed. The weights of a ``ConditionalUnet1D``
            (or ``OthersUnet1D``) are copied, and copied again where they have changed. Another
            network is returned as it is; so is a U-Net with layers that were exchanged for others,
            hooks, or a forward pass of its own.
        timesteps: (K,) int64. precision: "fp32", "tf32" (CUDA) or "bf16".
        compile: compile it with ``torch.compile`` at its first calls: up to a minute on a GPU,
            some minutes on a CPU.
        layers: as for ``InferenceUnet1D``.

    Raises:
        ValueError: a precision or layers that are unknown or not to be had there, or options for
            another network than a ``ConditionalUnet1D``.
    """
    why = _why_not(network)
    if why is None:
        assert isinstance(network, (ConditionalUnet1D, OthersUnet1D))
        return PreparedUnet1D(network, timesteps, precision, compile, layers)
    if precision != "fp32" or compile or layers != "auto":
        raise InputError(f"precision, compile and layers are for a ConditionalUnet1D, {why}")
    return network
