"""From a trained network to the form that is sampled: cached conditioning, precision, compiling."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from asd_policy.networks.inference import InferenceUnet1D
from asd_policy.networks.products import pack
from asd_policy.networks.unet1d import ConditionalUnet1D


class PreparedUnet1D:
    """A U-Net as samplers call it: by step and chain, its conditions given once for a chunk.

    Args:
        unet: the network. compile: run it through ``torch.compile`` at its first calls.
    """

    def __init__(self, unet: InferenceUnet1D, compile: bool = False) -> None:
        self.unet, self.compile = unet, compile
        if compile:
            self._compile()
        else:
            pack(unet)

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

    def condition(self, cond: Tensor | None, batch: int) -> Tensor:
        """(B, global_cond_dim), or None → (B, F), the observations' part of every modulation."""
        return self.unet.condition(cond, batch)

    def evaluate(self, x: Tensor, steps: Tensor, chains: Tensor, condition: Tensor) -> Tensor:
        """(N, T, input_dim) points at (N,) steps of (N,) chains → the prediction."""
        film = self.unet.timestep_film[steps]
        return self.unet(x, film + (condition if len(condition) == 1 else condition[chains]))


def prepare(
    network: nn.Module,
    timesteps: Tensor,
    precision: str = "fp32",
    compile: bool = False,
) -> PreparedUnet1D | nn.Module:
    """A network ready to be sampled at the timesteps of one schedule.

    Args:
        network: on its device. A ``ConditionalUnet1D``'s weights are copied; another network is
            returned as it is.
        timesteps: (K,) int64. precision: "fp32", "tf32" (CUDA) or "bf16".
        compile: compile it with ``torch.compile`` at its first calls: up to a minute on a GPU,
            some minutes on a CPU.

    Raises:
        ValueError: a precision that is unknown or not to be had there, or options for another
            network than a ``ConditionalUnet1D``.
    """
    if not isinstance(network, ConditionalUnet1D):
        if precision != "fp32" or compile:
            name = type(network).__name__
            raise ValueError(f"precision and compile are for a ConditionalUnet1D, got a {name}")
        return network
    timesteps = timesteps.to(next(network.parameters()).device)
    layers = "products" if compile else "auto"
    unet = InferenceUnet1D(network, timesteps, precision, layers)
    return PreparedUnet1D(unet.eval(), compile)
