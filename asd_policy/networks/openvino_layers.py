"""The layers of ConditionalUnet1D in OpenVINO, which compiles them for a CPU.

On a CPU the time of a few rows is the launching of small operations. OpenVINO runs the whole U-Net
in one call, with group norm, modulation and residuals fused. Its code for a fixed number of rows is
about twice as fast as that for any number: a call is compiled for some numbers of rows, and filled
up to the next one.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from asd_policy.errors import EngineError
from asd_policy.networks.unet1d import ConditionalResidualBlock1D

Node = Any  # of OpenVINO's graph
ROWS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # a call is compiled for; more are several calls
OLDEST = (2025, 0)
INSTALL = "pip install 'asd-policy[openvino]'"
# A thread's placement is its owner's affair, and so are shorter numbers.
_SETTINGS = {
    "INFERENCE_PRECISION_HINT": "f32",
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": 1,
    "ENABLE_CPU_PINNING": False,
}


def version() -> str | None:
    """Of OpenVINO; None where it is not installed. It is not imported."""
    try:
        found = importlib.util.find_spec("openvino") is not None
        return importlib.metadata.version("openvino") if found else None
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None


def missing() -> str | None:
    """Why OpenVINO cannot be used here, with what mends it; None where it seems to be there."""
    found = version()
    if found is None:
        return f"OpenVINO is not installed: {INSTALL}"
    numbers = [int(part) for part in found.split(".")[:2] if part.isdecimal()]
    if tuple(numbers) < OLDEST:
        return f"OpenVINO {'.'.join(map(str, OLDEST))} or later is needed, found {found}: {INSTALL}"
    return None


@functools.cache
def _library() -> tuple[Any, Any, Any]:
    """The module, its operations, and its one core: imported when first needed."""
    why = missing()
    if why is not None:
        raise EngineError(why)
    try:
        with _untold():
            module = importlib.import_module("openvino")
        return module, importlib.import_module("openvino.opset13"), module.Core()
    except Exception as error:  # whatever is broken in there
        raise EngineError(
            f"OpenVINO cannot be imported: {type(error).__name__}: {error}"
        ) from error


@contextlib.contextmanager
def _untold() -> Iterator[None]:
    """Within, OpenVINO is imported as where its telemetry package is missing: by itself it would
    tell its makers of every import. A program that has imported either has chosen itself."""
    name = "openvino_telemetry"
    if name in sys.modules or "openvino" in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


def _operations() -> Any:
    return _library()[1]


def _constant(values: Tensor | Sequence[int]) -> Node:
    """A tensor's numbers where they lie, or whole numbers."""
    if isinstance(values, Tensor):
        return _operations().constant(values.detach().numpy(), shared_memory=True)
    return _operations().constant(np.array(values, np.int64))


class _Convolution(nn.Module):
    """Conv1d, or ConvTranspose1d, and its bias."""

    def __init__(self, conv: nn.Conv1d | nn.ConvTranspose1d) -> None:
        super().__init__()
        assert conv.bias is not None
        self.up = isinstance(conv, nn.ConvTranspose1d)
        self.stride, self.padding = [conv.stride[0]], [int(conv.padding[0])]
        self.register_buffer("weight", _copy(conv.weight))
        self.register_buffer("bias", _copy(conv.bias).view(1, -1, 1))

    def forward(self, x: Node) -> Node:
        """(N, in, T) → (N, out, T')."""
        op, weight = _operations(), _constant(cast(Tensor, self.weight))
        pads = {"pads_begin": self.padding, "pads_end": self.padding, "dilations": [1]}
        make = op.convolution_backprop_data if self.up else op.convolution
        return op.add(make(x, weight, self.stride, **pads), _constant(cast(Tensor, self.bias)))


class _Block(nn.Module):
    """Convolution, group norm, Mish."""

    def __init__(self, block: nn.Sequential) -> None:
        super().__init__()
        self.convolution = _Convolution(cast(nn.Conv1d, block[0]))
        self.norm = deepcopy(cast(nn.GroupNorm, block[1]))

    def forward(self, x: Node) -> Node:
        op, norm = _operations(), self.norm
        scaled = _constant(norm.weight), _constant(norm.bias)
        return op.mish(
            op.group_normalization(self.convolution(x), *scaled, norm.num_groups, norm.eps)
        )


class _Residual(nn.Module):
    def __init__(self, block: ConditionalResidualBlock1D) -> None:
        super().__init__()
        self.first, self.second = (_Block(cast(nn.Sequential, b.block)) for b in block.blocks)
        conv = block.residual_conv
        self.residual = _Convolution(conv) if isinstance(conv, nn.Conv1d) else nn.Identity()

    def forward(self, x: Node, scale: Node, shift: Node) -> Node:
        op = _operations()
        modulated = op.add(op.multiply(self.first(x), scale), shift)
        return op.add(self.second(modulated), self.residual(x))


def _copy(values: Tensor) -> Tensor:
    return values.detach().clone(memory_format=torch.contiguous_format)


class Graph:
    """Makes these layers out of a network's: called, they add to an OpenVINO graph."""

    def enter(self, x: Node) -> Node:
        """(N, T, C) → (N, C, T)."""
        return _operations().transpose(x, _constant([0, 2, 1]))

    def modulation(self, film: Node, sizes: Sequence[int]) -> list[Node]:
        """(N, F) → parts (N, C, 1) of these sizes."""
        op = _operations()
        parts = op.variadic_split(
            op.unsqueeze(film, _constant([2])), _constant([1]), _constant(sizes)
        )
        return list(parts.outputs())

    def join(self, h: Node, skipped: Node) -> Node:
        """Side by side along the channels."""
        return _operations().concat([h, skipped], 1)

    def residual(self, block: ConditionalResidualBlock1D, inputs: int = 1) -> nn.Module:
        return _Residual(block)

    def down(self, conv: nn.Conv1d) -> nn.Module:
        return _Convolution(conv)

    def up(self, conv: nn.ConvTranspose1d) -> nn.Module:
        return _Convolution(conv)

    def final(self, final: nn.Sequential) -> nn.Module:
        block = cast(nn.Sequential, cast(nn.Module, final[0]).block)
        return nn.Sequential(_Block(block), _Convolution(cast(nn.Conv1d, final[1])))


class _Call:
    """A network call on a fixed number of rows: its tensors, and what fills them."""

    def __init__(
        self, course: nn.Module, shapes: tuple[tuple[int, ...], ...], threads: int
    ) -> None:
        module, op, core = _library()
        inputs = [op.parameter(list(shape), np.float32) for shape in shapes]
        h = op.transpose(course(*inputs), _constant([0, 2, 1]))
        graph = module.Model([op.result(h)], inputs, "unet")
        settings = _SETTINGS | {"INFERENCE_NUM_THREADS": threads}
        self._request = core.compile_model(graph, "CPU", settings).create_infer_request()
        self.x, self.film, self.out = (
            torch.zeros(shape, device="cpu", dtype=torch.float32) for shape in (*shapes, shapes[0])
        )
        for i, tensor in enumerate((self.x, self.film)):
            self._request.set_input_tensor(i, module.Tensor(tensor.numpy(), shared_memory=True))
        self._request.set_output_tensor(0, module.Tensor(self.out.numpy(), shared_memory=True))

    def __call__(self, x: Tensor, film: Tensor) -> Tensor:
        rows = len(x)
        for mine, given in ((self.x, x), (self.film, film)):
            mine[:rows] = given
            mine[rows:] = 0.0  # nothing is left of another call
        self._request.infer()
        return self.out[:rows].clone()


class CompiledTrunk(nn.Module):
    """The course of the U-Net as OpenVINO compiles it, for as many numbers of rows as are asked.

    Args:
        course: over layers of :class:`Graph`.

    A number of rows is compiled at its first call, with all lower ones, which the end of a chunk
    may need: a fifth of a second each for the networks that ship. The same rows give the same bits;
    so do other numbers of rows, on the machines that were tried.
    """

    def __init__(self, course: nn.Module) -> None:
        super().__init__()
        self.course = course
        self._calls: dict[tuple[int, int, int], _Call] = {}

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        """(N, T, input_dim), (N, F) float32 → (N, T, input_dim).

        Raises:
            EngineError: OpenVINO is missing, or cannot compile or run this.
        """
        if len(x) > ROWS[-1]:
            parts = zip(x.split(ROWS[-1]), film.split(ROWS[-1]), strict=True)
            return torch.cat([self(*part) for part in parts])
        fits = next(rows for rows in ROWS if rows >= len(x))
        key = fits, x.shape[1], torch.get_num_threads()
        if key not in self._calls:
            for rows in ROWS[: ROWS.index(fits) + 1]:
                self._compile(rows, x, film)
        try:
            return self._calls[key](x, film)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed in a call of {fits} rows: {error}") from error

    def _compile(self, rows: int, x: Tensor, film: Tensor) -> None:
        threads = torch.get_num_threads()
        key = rows, x.shape[1], threads
        if key in self._calls:
            return
        shapes = (rows, *x.shape[1:]), (rows, film.shape[1])
        try:
            # Plain tensors, whoever calls: they are filled again in any mode.
            with torch.inference_mode(False), torch.no_grad():
                self._calls[key] = _Call(self.course, shapes, threads)
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"OpenVINO cannot compile a call of {rows} rows: {error}") from error

    def take(self, other: nn.Module) -> None:
        """Other weights have been copied into these: what was compiled held the old ones."""
        self.release()

    def release(self) -> None:
        """Let go of what was compiled. It is compiled again when it is called."""
        self._calls.clear()

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return state | {"_calls": {}}  # a copy compiles its own
