"""ConditionalUnet1D prepared for sampling: the same function in fewer, larger operations.

In a chunk the network is called at many points, at K known timesteps and with one observation per
chain. Every residual block modulates its activations (FiLM) by Linear(Mish([e(t), c])). Mish is
elementwise, so this is W_t·Mish(e(t)) + W_c·Mish(c) + bias: a (K, F) table and a (B, F) matrix for
the whole network, computed once, where F = Σ 2·out_channels over the residual blocks.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asd_policy.ambient import own_precision
from asd_policy.errors import EngineError, InputError, LayersError
from asd_policy.networks.fused import LEAST_KERNEL, Fused
from asd_policy.networks.layers import check_layers, first_kernel
from asd_policy.networks.openvino_layers import CompiledTrunk, Graph
from asd_policy.networks.products import Products
from asd_policy.networks.tiling import why_not
from asd_policy.networks.unet1d import ConditionalResidualBlock1D, ConditionalUnet1D
from asd_policy.networks.whole import Whole
from asd_policy.threads import limited_to

PRECISIONS = ("fp32", "tf32", "bf16")
LAYERS = ("auto", "products", "fused", "whole", "openvino")
_cores = threading.RLock()  # what is chosen is chosen for all threads
ON_CUDA = "fused"  # what "auto" means there: "whole" has not been measured yet


def _levels(modules: nn.ModuleList) -> list[list[nn.Module]]:
    """[first residual block, second, resampling] of each level."""
    return [list(cast(nn.ModuleList, level)) for level in modules]


def _residual_blocks(network: ConditionalUnet1D) -> list[ConditionalResidualBlock1D]:
    """In the order of the forward pass."""
    down, up = _levels(network.down_modules), _levels(network.up_modules)
    blocks = [b for level in down for b in level[:2]] + list(network.mid_modules)
    blocks += [b for level in up for b in level[:2]]
    return cast(list[ConditionalResidualBlock1D], blocks)


def _film(block: ConditionalResidualBlock1D) -> tuple[Tensor, Tensor]:
    """Weight (2C, cond) and bias (2C,) that make a block's scale and shift. Of one that only
    shifts, the scale is 1, exactly."""
    linear = cast(nn.Linear, block.cond_encoder[1])
    if block.scales:
        return linear.weight, linear.bias
    none = torch.zeros_like(linear.weight)
    return torch.cat([none, linear.weight]), torch.cat([torch.ones_like(linear.bias), linear.bias])


def _channels(block: ConditionalResidualBlock1D) -> int:
    return cast(nn.Linear, block.cond_encoder[1]).out_features // (2 if block.scales else 1)


class Trunk(nn.Module):
    """The course of the U-Net over layers of one kind, the modulation given."""

    def __init__(
        self, network: ConditionalUnet1D, layers: Products | Fused | Whole | Graph
    ) -> None:
        super().__init__()
        self.layers = layers
        blocks = _residual_blocks(network)
        self.sizes = [_channels(b) for b in blocks for _ in range(2)]
        downs, ups = _levels(network.down_modules)[:-1], _levels(network.up_modules)
        joined = {id(level[0]) for level in ups}  # blocks whose input is two activations
        self.blocks = nn.ModuleList(layers.residual(b, 1 + (id(b) in joined)) for b in blocks)
        self.downs = nn.ModuleList(layers.down(cast(nn.Conv1d, lv[2].conv)) for lv in downs)
        self.ups = nn.ModuleList(layers.up(cast(nn.ConvTranspose1d, lv[2].conv)) for lv in ups)
        self.final = layers.final(network.final_conv)

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        """(N, T, input_dim), (N, F) → (N, T, input_dim)."""
        parts = self.layers.modulation(film, self.sizes)
        pairs = zip(self.blocks, parts[::2], parts[1::2], strict=True)

        def two_blocks(h: Any) -> Any:
            for block, scale, shift in (next(pairs), next(pairs)):
                h = block(h, scale, shift)
            return h

        h: Any = self.layers.enter(x)
        skips = []
        for down in [*self.downs, nn.Identity()]:
            skips.append(two_blocks(h))
            h = down(skips[-1])
        h = two_blocks(h)
        for up in self.ups:
            h = up(two_blocks(self.layers.join(h, skips.pop())))
        return cast(Tensor, self.final(h))


class InferenceUnet1D(nn.Module):
    """A ConditionalUnet1D for sampling, its timesteps known.

    ``network(x, timesteps[steps], cond[chains])`` is, to rounding,
    ``prepared(x, prepared.timestep_film[steps] + prepared.condition(cond, B)[chains])``.

    The weights are copied: training ``network`` afterwards changes nothing here
    (``PreparedUnet1D`` copies them again), and ``network`` stays as it is. They are laid out for
    the device that it is on, so prepare again rather than move. No gradients, and no autocast:
    the precision is the one asked for. On CUDA
    there is no synchronisation, and shapes depend on those of the arguments alone, so that the call
    can be captured in a CUDA graph. To compile, compile ``trunk`` of "products", which is one
    graph: ``prepared.trunk.compile(fullgraph=True)`` (the choice of TF32 is made around it, at
    compilation and in every call).

    Args:
        network: on its device, float32 (or float64, with ``precision="fp32"``).
        timesteps: (K,) int64, one per step.
        precision: "fp32": the network's own dtype. "tf32" (CUDA only): products round their
            inputs to TF32. "bf16": weights and activations in bfloat16, with group norm's
            statistics and the modulation's two factors in float32.
        layers: convolutions as matrix "products", in PyTorch's operations; or "fused", with a
            Triton kernel between two products on CUDA, and convolutions of 3 points or more;
            or "whole", with one Triton kernel for each of them and all that follows it; or
            compiled by "openvino" at the first calls (on a CPU, in float32); "auto": ``ON_CUDA``
            where Triton is there, else products.

    Attributes:
        timestep_film: (K, F) the timesteps' part of the modulation, biases included.
        layers: those that it has. fallback: why "auto" has not its first choice, or None.

    Raises:
        ValueError: unknown precision or layers, "tf32" without CUDA, "fused" for convolutions of
            one point, "whole" and "openvino" where they cannot be had, timesteps of another shape
            or dtype, or a network whose layers were exchanged for others (``check_layers``).
    """

    timestep_film: Tensor
    cond_weight: Tensor
    trunk: Trunk | CompiledTrunk

    def __init__(
        self,
        network: ConditionalUnet1D,
        timesteps: Tensor,
        precision: str = "fp32",
        layers: str = "auto",
    ) -> None:
        super().__init__()
        like = next(network.parameters())
        _check_precision(precision, like.device)
        check_layers(network)
        if timesteps.dim() != 1 or timesteps.dtype != torch.int64:
            found = f"{timesteps.dtype} of shape {tuple(timesteps.shape)}"
            raise InputError(f"timesteps must be int64 of shape (K,), got {found}")
        self.precision = precision
        self.input_dim, self.cond_dim = network.input_dim, network.global_cond_dim
        self.length_multiple = network.length_multiple
        self._prepare_film(network, timesteps.to(like))
        self.kernel_size = first_kernel(network)
        self.layers, self.fallback = _choose(layers, like, self.kernel_size)
        if self.layers == "openvino":
            _check_compiles(like, precision)
            self.trunk = CompiledTrunk(Trunk(network, Graph()).requires_grad_(False))
            return
        made = _make(self.layers, self.kernel_size, precision)
        self.trunk = Trunk(network, made).requires_grad_(False)
        if precision == "bf16":
            self.trunk.bfloat16()

    @torch.no_grad()
    @own_precision()
    def _prepare_film(self, network: ConditionalUnet1D, timesteps: Tensor) -> None:
        films = [_film(block) for block in _residual_blocks(network)]
        weight, bias = (torch.cat(parts) for parts in zip(*films, strict=True))
        # Mish([e(t), c]) is [Mish(e(t)), Mish(c)].
        # By one thread, whatever the program has where a policy is loaded or copied: two threads
        # may sum in another order, and a seed would give other actions.
        with limited_to(1):
            embedding = F.mish(network.diffusion_step_encoder(timesteps))
            timestep_weight, cond_weight = weight.tensor_split([embedding.shape[1]], dim=1)
            film = F.linear(embedding, timestep_weight, bias)
        self.register_buffer("timestep_film", film)
        self.register_buffer("cond_weight", cond_weight.contiguous())

    @torch.no_grad()
    def condition(self, cond: Tensor | None, batch: int) -> Tensor:
        """The observation's part of the modulation.

        Args:
            cond: (B, global_cond_dim), or None if the network has no condition.
            batch: B.

        Returns:
            (B, F); zeros without a condition.

        Raises:
            ValueError: a condition of another shape.
        """
        expected = (batch, self.cond_dim) if self.cond_dim else None
        found = None if cond is None else tuple(cond.shape)
        if found != expected:
            raise InputError(f"the condition must be {expected}, got {found}")
        if cond is None:
            return self.timestep_film.new_zeros(batch, self.timestep_film.shape[1])
        with own_precision():
            return F.linear(F.mish(cond.to(self.cond_weight.dtype)), self.cond_weight)

    @torch.no_grad()
    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        """The network's prediction.

        Args:
            x: (N, T, input_dim), T a multiple of 2^(levels - 1).
            film: (N, F) modulation of each row.

        Returns:
            (N, T, input_dim), of x's dtype.

        Raises:
            ValueError: x of another shape.
            LayersError: "whole" layers could not be compiled or launched.
            EngineError: what was compiled with ``torch.compile`` could not be.
        """
        if x.dim() != 3 or x.shape[2] != self.input_dim or x.shape[1] % self.length_multiple:
            expected = f"(N, multiple of {self.length_multiple}, {self.input_dim})"
            raise InputError(f"x must be of shape {expected}, got {tuple(x.shape)}")
        rounds = self.precision == "bf16" and self.layers != "whole"  # which round themselves
        h = x.bfloat16() if rounds else x
        with own_precision():
            if not x.is_cuda:
                return self._run(h, film).to(x.dtype)
            with tensor_cores(self.precision == "tf32"):
                return self._run(h, film).to(x.dtype)

    def _run(self, h: Tensor, film: Tensor) -> Tensor:
        try:
            return cast(Tensor, self.trunk(h, film))
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # of Triton's compiler and launcher, which have many kinds
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if self.layers == "whole":
                raise LayersError(f"whole layers failed: {text}") from error
            if type(error).__module__ == "torch._dynamo.exc":
                raise EngineError(
                    f"torch.compile of PyTorch {torch.__version__} failed (2.9 is known to work; "
                    f"without compile, this network runs on any): {text}"
                ) from error
            raise


@contextmanager
def tensor_cores(allowed: bool | None) -> Iterator[None]:
    """Whether float32 products and convolutions may round their inputs to TF32; None: as it is."""
    if allowed is None:
        yield
        return
    with _cores:
        try:
            before = [part.allow_tf32 for part in _parts()]
        except RuntimeError:  # someone has set them by their newer names: these do not mix
            before = []
        if not before:
            with _tensor_cores_by_name("tf32" if allowed else "ieee"):
                yield
            return
        try:
            for part in _parts():
                part.allow_tf32 = allowed
            yield
        finally:
            for part, value in zip(_parts(), before, strict=True):
                part.allow_tf32 = value


def _parts() -> tuple[Any, Any]:
    return torch.backends.cudnn, torch.backends.cuda.matmul


@contextmanager
def _tensor_cores_by_name(precision: str) -> Iterator[None]:
    parts: Any = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = [part.fp32_precision for part in parts]
    try:
        for part in parts:
            part.fp32_precision = precision
        yield
    finally:
        for part, value in zip(parts, before, strict=True):
            part.fp32_precision = value


def _choose(layers: str, like: Tensor, kernel_size: int) -> tuple[str, str | None]:
    """The layers that are meant, and why they are not those that "auto" would have first."""
    if layers not in LAYERS:
        raise InputError(f"layers must be one of {LAYERS}, got {layers!r}")
    small = None
    if kernel_size < LEAST_KERNEL:
        small = f"fused layers need convolutions of {LEAST_KERNEL} points, got {kernel_size}"
    if layers != "auto":
        missing = why_not(like.device, like.dtype) if layers == "whole" else None
        if missing is not None or (layers == "fused" and small):
            raise InputError(f"whole layers cannot be had: {missing}" if missing else str(small))
        return layers, None
    if like.device.type != "cuda":
        return "products", None
    why = why_not(like.device, like.dtype) if ON_CUDA == "whole" else None
    if ON_CUDA == "whole" and why is None:
        return "whole", None
    has_triton = importlib.util.find_spec("triton") is not None
    return ("fused" if has_triton and small is None else "products"), why


def _make(layers: str, kernel_size: int, precision: str) -> Products | Fused | Whole:
    if layers == "whole":
        return Whole(precision)
    return (Fused if layers == "fused" else Products)(kernel_size)


def _check_precision(precision: str, device: torch.device) -> None:
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {PRECISIONS}, got {precision!r}")
    if precision == "tf32" and device.type != "cuda":
        raise InputError(f"precision 'tf32' needs a CUDA device, the network is on {device}")


def _check_compiles(like: Tensor, precision: str) -> None:
    if like.device.type != "cpu" or like.dtype != torch.float32 or precision != "fp32":
        found = f"{precision!r} of {str(like.dtype).removeprefix('torch.')} on {like.device}"
        raise InputError(f"openvino layers are for 'fp32' of float32 on cpu, got {found}")
