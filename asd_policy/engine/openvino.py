"""The OpenVINO engine: on a CPU, a network call is one compiled graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from asd_policy.denoiser import Network, PreparedNetwork
from asd_policy.drafts import Form
from asd_policy.engine.eager import Engine
from asd_policy.errors import EngineError
from asd_policy.networks.openvino_layers import CompiledTrunk, missing
from asd_policy.networks.prepare import PreparedUnet1D
from asd_policy.samplers.result import Noise, Stats
from asd_policy.samplers.table import Loop, Plan

Result = TypeVar("Result")


def unsuited(network: Network | PreparedNetwork, device: torch.device | str) -> str | None:
    """Why a network cannot be sampled by OpenVINO; None where it can, if OpenVINO is there."""
    if torch.device(device).type != "cpu":
        return f"it runs on a CPU, and the chains are on {device}"
    if not isinstance(network, PreparedUnet1D):
        kind = getattr(network, "__qualname__", type(network).__qualname__)
        return f"it takes a ConditionalUnet1D that a policy or `prepare` has prepared, got {kind}"
    like = next(network.network.parameters())
    if network.precision != "fp32" or like.dtype != torch.float32 or network.compile:
        found = network.precision if network.precision != "fp32" else f"{like.dtype}"
        how = f"{found.removeprefix('torch.')}{' through torch.compile' * network.compile}"
        return f"it computes in float32, and this network runs in {how}"
    return None


class OpenVinoEngine(Engine):
    """An :class:`Engine` whose network is compiled by OpenVINO, for some numbers of rows.

    Drafts, decisions and noise are the eager engine's. A number of rows is compiled at the first
    call that needs it; :meth:`close` lets go of all that was compiled.

    Args:
        fallback: where OpenVINO fails, warn once and go on eagerly (``name`` then says so).

    Raises:
        EngineError: OpenVINO is not there, or the network is no U-Net in float32 on a CPU.
    """

    name = "openvino"

    def __init__(self, *args: Any, fallback: bool = False, **options: Any) -> None:
        super().__init__(*args, **options)
        why = unsuited(self.source, self.like.device) or missing()
        if why is not None:
            raise EngineError(f"the OpenVINO engine cannot be had: {why}")
        assert isinstance(self.source, PreparedUnet1D)
        self._compiled, self._fallback = self.source.in_openvino(), fallback
        self.network = self._compiled

    def sequential(
        self, noise: Noise, cond: Tensor | None, name: str = "ddpm"
    ) -> tuple[Tensor, Stats]:
        return self._or_eagerly(lambda: super(OpenVinoEngine, self).sequential(noise, cond, name))

    def run(self, loop: Loop, noise: Noise, cond: Tensor | None) -> tuple[Tensor, Stats]:
        return self._or_eagerly(lambda: super(OpenVinoEngine, self).run(loop, noise, cond))

    def asd(
        self, noise: Noise, cond: Tensor | None, form: Form, plan: Plan
    ) -> tuple[Tensor, Stats]:
        return self._or_eagerly(lambda: super(OpenVinoEngine, self).asd(noise, cond, form, plan))

    def _or_eagerly(self, draw: Callable[[], Result]) -> Result:
        """A chunk; where OpenVINO fails under "auto", the same chunk again without it."""
        try:
            return draw()
        except EngineError as error:
            if not self._fallback:
                raise
            self.close()
            with self._lock:
                if self.name == "openvino":
                    self.name, self.network = "eager", self.source
                    warnings.warn(f"using the eager engine: {error}", stacklevel=4)
        return draw()

    def close(self) -> None:
        """Release the states that are kept, and what was compiled. The engine can still be used."""
        super().close()
        with self._lock:
            trunk = self._compiled.unet.trunk
            assert isinstance(trunk, CompiledTrunk)
            trunk.release()
