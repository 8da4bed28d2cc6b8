"""A round's arithmetic in C, for float32 and float64 chains on a CPU."""

from __future__ import annotations

import ctypes
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from asd_policy.chains import Chains
from asd_policy.denoiser import Denoiser
from asd_policy.drafts import DRAFTS, Form
from asd_policy.samplers.ddpm import advance

try:
    from asd_policy.engine import _native
except ImportError:  # built where there is a C compiler at installation
    _native = None  # type: ignore[assignment]

__all__ = ["advance", "available", "observe", "propose", "settle", "verify", "walk"]

# In the order of native.c's State.
_TABLES = ("a", "b", "sigma", "delta")
_POINTERS = (
    *("x", "noise", "log_uniform", "value", "point", "displacement", "residual", "slopes"),
    *(*_TABLES, "uv", "cross", "square", "scratch"),
    *("n", "last", "bad", "pushed", "calls", "evaluations", "accepted", "decided"),
    *("fresh", "learned"),
)
_PATHS = {"path": "point", "mean": "mean", "draft": "draft", "met": "met", "end": "end"}


def available() -> bool:
    """Whether the extension was built. Without it, PyTorch does the same."""
    return _native is not None


class _State(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "dim", "rows", "num_steps", "clipped")),
        ("clip", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in (*_POINTERS, *_PATHS)),
    ]


class _Addresses:
    """Where the tensors of one batch of chains and its denoiser's table lie."""

    def __init__(self, chains: Chains, denoiser: Denoiser) -> None:
        self.denoiser, self._scratch = denoiser, chains.x.new_empty(chains.dim)
        tensors = {
            **vars(chains),
            **{name: getattr(chains.tables, name) for name in _TABLES},
            "uv": denoiser.uv,
            "scratch": self._scratch,
        }
        pointers = [tensors[name] for name in _POINTERS]
        if chains.paths is not None:
            pointers += [getattr(chains.paths, name) for name in _PATHS.values()]
        assert all(tensor.is_contiguous() for tensor in pointers)
        clip = denoiser.clip_range
        sizes = chains.batch, chains.dim, chains.tables.rows, chains.num_steps, clip is not None
        addresses = (tensor.data_ptr() for tensor in pointers)
        self._state = _State(*sizes, clip or 0.0, *addresses)
        self.arguments = ctypes.addressof(self._state), chains.x.dtype == torch.float64


_states: WeakKeyDictionary[Chains, _Addresses] = WeakKeyDictionary()


def _state(chains: Chains, denoiser: Denoiser) -> _Addresses:
    state = _states.get(chains)
    if state is None or state.denoiser is not denoiser:
        state = _states[chains] = _Addresses(chains, denoiser)
    return state


def propose(chains: Chains, denoiser: Denoiser, form: Form, width: int) -> tuple[Tensor, Tensor]:
    """:func:`asd_policy.drafts.propose`."""
    points = chains.x.new_empty(chains.batch, width + 1, chains.dim)
    drafts = chains.x.new_empty(chains.batch, width, chains.dim)
    kind = DRAFTS.index(form.draft)
    state = _state(chains, denoiser).arguments
    _native.propose(*state, kind, width, points.data_ptr(), drafts.data_ptr())
    return points, drafts


def observe(
    chains: Chains, denoiser: Denoiser, points: Tensor, prediction: Tensor, form: Form
) -> None:
    """:func:`asd_policy.samplers.asd.observe`."""
    _verify(chains, denoiser, points, prediction, prediction, 0, form, False)


def verify(
    chains: Chains,
    denoiser: Denoiser,
    points: Tensor,
    drafts: Tensor,
    prediction: Tensor,
    form: Form,
) -> None:
    """:func:`asd_policy.samplers.asd.verify`. Overwrites the drafts."""
    _verify(chains, denoiser, points, drafts, prediction, form.ahead, form, True)


def walk(chains: Chains, denoiser: Denoiser, width: int) -> tuple[Tensor, Tensor]:
    """:func:`asd_policy.rejoin.walk`."""
    points = chains.x.new_empty(chains.batch, width, chains.dim)
    steps = torch.empty((chains.batch, width), dtype=torch.int64, device=points.device)
    state = _state(chains, denoiser).arguments
    _native.walk(*state, width, points.data_ptr(), steps.data_ptr())
    return points, steps


def settle(
    chains: Chains, denoiser: Denoiser, points: Tensor, steps: Tensor, prediction: Tensor,
    form: Form,
) -> None:  # fmt: skip
    """:func:`asd_policy.samplers.asd.settle`."""
    state = _state(chains, denoiser).arguments
    points, steps, prediction = points.contiguous(), steps.contiguous(), prediction.contiguous()
    addresses = points.data_ptr(), steps.data_ptr(), prediction.data_ptr()
    _native.settle(*state, points.shape[1], form.secants, form.learn, *addresses)


def _verify(
    chains: Chains, denoiser: Denoiser, points: Tensor, drafts: Tensor, prediction: Tensor,
    ahead: int, form: Form, couple: bool,
) -> None:  # fmt: skip
    state = _state(chains, denoiser)
    points, prediction = points.contiguous(), prediction.contiguous()
    width = prediction.shape[1]
    addresses = points.data_ptr(), drafts.data_ptr(), prediction.data_ptr()
    flags = form.secants, form.learn, couple
    _native.verify(*state.arguments, width, ahead, *flags, *addresses)
