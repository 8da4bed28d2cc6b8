"""The one place that turns what a network predicts (ε, x0 or v) into the clipped x̂0."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from asd_policy.ambient import as_asked
from asd_policy.errors import InputError, NonFiniteError
from asd_policy.schedule import Schedule

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@runtime_checkable
class PreparedNetwork(Protocol):
    """A network made ready for the timesteps of one schedule, so that a call repeats less."""

    def condition(self, cond: Tensor | None, batch: int) -> Tensor:
        """(B, …) conditions → (B, F), computed once for a chunk."""

    def evaluate(self, x: Tensor, steps: Tensor, chains: Tensor, condition: Tensor) -> Tensor:
        """(N, *shape) points at (N,) steps of (N,) chains, with what :meth:`condition` gave."""


def check_arguments(network: object) -> None:
    """Refuse a network that cannot be called as ``network(x, timesteps, cond)``.

    Raises:
        ValueError: its arguments are others.
    """
    call = network.forward if isinstance(network, nn.Module) else network
    if isinstance(network, PreparedNetwork | torch.jit.ScriptModule) or not callable(call):
        return
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):  # of what is not written in Python, none is known
        return
    try:
        signature.bind(None, None, None)
    except TypeError:
        raise InputError(
            f"the denoiser is called as denoiser(x, timesteps, cond); this one takes {signature}"
        ) from None


class Around:
    """What calls another ``network``, which is the one to be looked into."""

    network: Any


def check_mode(network: object) -> None:
    """Refuse a network whose layers do in training what no sampler can sample from: batch norm
    mixes the rows of a call, which must be independent, and dropout makes every call another
    function. Looks into modules, their methods and what ``functools.partial`` binds; not into
    other functions.

    Raises:
        ValueError: the network holds such a layer in training mode, or one that mixes rows in every
            mode: batch norm that has no running statistics, or a layer quantized dynamically to
            int8; or it is nothing that can be called.
    """
    if not callable(network) and not isinstance(network, PreparedNetwork):
        raise InputError(
            "the denoiser must be a network or a function denoiser(x, timesteps, cond); got "
            f"{type(network).__name__}"
        )
    network = owner(network)
    if not isinstance(network, nn.Module):
        return
    for name, layer in network.named_modules():
        of = f"{type(layer).__name__} {name!r}" if name else type(layer).__name__
        mixes = _is(layer, _BatchNorm)
        if mixes and not layer.training and layer.running_mean is None:
            raise InputError(
                f"the network's {of} has no running statistics, so that the rows of a call are not "
                "independent; expected batch norm with track_running_stats, or group norm"
            )
        if _scales_rows_together(layer):
            raise InputError(
                f"the network's {of} rounds the rows of a call on a scale of all of them, so that "
                "they are not independent; expected the network before quantize_dynamic, or "
                "quantized to float16"
            )
        if layer.training and (_drops(layer) or mixes):
            why = "draws at random" if _drops(layer) else "mixes the rows of a call"
            raise InputError(f"the network's {of} {why} in training mode; call network.eval()")


def _kind(cond: Tensor | None) -> tuple[object, ...] | None:
    return None if cond is None else (cond.shape, cond.dtype, cond.device)


def owner(network: object) -> object:
    """The object behind methods, what ``functools.partial`` binds, and what is put around it."""
    while isinstance(network, functools.partial | Around):
        network = network.func if isinstance(network, functools.partial) else network.network
    return getattr(network, "__self__", network)


def _drops(layer: Any) -> bool:
    """Whether a layer draws random numbers in training."""
    if _is(layer, nn.MultiheadAttention, nn.RNNBase):
        return bool(layer.dropout > 0)
    if _is(layer, _DropoutNd):
        return bool(layer.p > 0)
    share = getattr(layer, "dropout_prob", 0)  # of labels that diffusers leaves out, for guidance
    return _is(layer, nn.RReLU) or (isinstance(share, float) and share > 0)


def _scales_rows_together(layer: nn.Module) -> bool:
    """Whether it is one that ``torch.ao.quantization.quantize_dynamic`` made, with int8 weights:
    what it is given is rounded to 256 numbers between the least and the largest of all rows."""
    if not type(layer).__module__.startswith("torch.ao.nn.quantized.dynamic."):
        return False
    packed = getattr(layer, "_packed_params", None)
    return torch.qint8 in (getattr(layer, "dtype", None), getattr(packed, "dtype", None))


def _is(layer: Any, *kinds: type) -> bool:
    """Whether a layer is one of PyTorch's; scripted, it keeps no more than the name."""
    if not isinstance(layer, torch.jit.ScriptModule):
        return isinstance(layer, kinds)
    kind = getattr(nn, layer.original_name, None)
    return isinstance(kind, type) and issubclass(kind, kinds)


@contextmanager
def _of_their_type(network: object, points: Tensor, cond: Tensor | None) -> Iterator[None]:
    """Say it where a network fails that is given points, or conditions (a robot's observations, of
    NumPy's double precision), of another type than its weights."""
    try:
        yield
    except RuntimeError as error:
        module = owner(network)
        weights = module.parameters() if isinstance(module, nn.Module) else ()
        types = {p.dtype for p in weights if p.is_floating_point()}
        given = [("the chain's points", points.dtype, "dtype={}")]
        if cond is not None and cond.is_floating_point():
            given.append(("cond", cond.dtype, "cond.to({})"))
        others = [each for each in given if each[1] not in types]
        if len(types) != 1 or not others or "type" not in str(error):
            raise
        (own,), (what, other, expected) = types, others[0]
        raise InputError(
            f"the network's weights are {own} and {what} {other}, and it failed: {error}; "
            f"expected {expected.format(own)}, or a network that converts what it is given"
        ) from error


class Denoiser:
    """x̂0 for any rows of a batch of chains, at any steps.

    Args:
        network: ``network(x, timesteps, cond)`` with x (N, *shape), timesteps (N,) int64 and cond
            with N rows, or None; or a :class:`PreparedNetwork`.
        schedule: the tables.
        shape: of one sample.
        cond: condition of each chain, (B, …), or None.
        like: a tensor whose dtype and device are the chain's.
    """

    def __init__(
        self,
        network: Network | PreparedNetwork,
        schedule: Schedule,
        shape: tuple[int, ...],
        cond: Tensor | None,
        like: Tensor,
    ) -> None:
        self.network, self.shape = network, shape
        self._cond: Tensor | None = None
        self._kind = _kind(cond)
        self.condition(cond, len(like))
        self.clip_range = schedule.config.clip_range if schedule.config.clip_sample else None
        # x̂0 = u·x + v·prediction
        signal, noise = schedule.signal, schedule.noise
        u, v = {
            "epsilon": (1 / signal, -noise / signal),
            "sample": (torch.zeros_like(signal), torch.ones_like(signal)),
            "v_prediction": (signal, -noise),
        }[schedule.config.prediction_type]
        # A window of at most K+1 steps may reach past the last; there x̂0 is 0 and not used.
        past = signal.new_zeros(schedule.num_steps + 2)
        self.uv = torch.stack([torch.cat([u, past]), torch.cat([v, past])], dim=1).to(like)
        if not bool(self.uv.isfinite().all()):
            raise InputError(
                f"this schedule leaves a signal of only {float(signal.min()):.1e}, and x̂0 from ε "
                f'is beyond {like.dtype}; expected smaller betas, prediction_type "v_prediction" '
                "or another dtype"
            )
        timesteps = torch.cat([schedule.timesteps, past.long()])
        self.timesteps = timesteps.to(like.device)
        steps = torch.arange(len(timesteps), device="cpu").clamp_(max=schedule.num_steps - 1)
        self._real_steps = steps.to(like.device)

    def __call__(self, x: Tensor, steps: Tensor, chains: Tensor) -> Tensor:
        """Clipped x̂0 (N, D), checked. Arguments and errors: as for :meth:`both`."""
        return self.both(x, steps, chains)[0]

    def both(self, x: Tensor, steps: Tensor, chains: Tensor) -> tuple[Tensor, Tensor]:
        """Clipped x̂0 and what the network predicts, (N, D) each, checked.

        Args:
            x: (N, D) points. steps: (N,) step of each. chains: (N,) chain of each.

        Raises:
            NonFiniteError: the network returned a NaN or an infinity (step and chain are named).
            ValueError: the network returned another shape than it was given, or no tensor.
        """
        prediction = self.predict(x, steps, chains)
        self._check(prediction, steps, chains)
        return self.clip(self._unclipped(x, prediction, steps)), prediction

    def condition(self, cond: Tensor | None, batch: int) -> None:
        """Take the conditions of a chunk's chains; into the same storage where shapes allow."""
        if isinstance(self.network, PreparedNetwork):
            cond = self.network.condition(cond, batch)
        if self._cond is None or cond is None or self._cond.shape != cond.shape:
            self._cond = None if cond is None else cond.clone()
        else:
            self._cond.copy_(cond)

    def takes(self, cond: Tensor | None) -> bool:
        """Whether these conditions fit where the first ones lie, by shape and type. (A captured
        graph reads them there.) What a prepared network makes of them always does."""
        return isinstance(self.network, PreparedNetwork) or _kind(cond) == self._kind

    def predict(self, x: Tensor, steps: Tensor, chains: Tensor) -> Tensor:
        """What the network says, (N, D) and unchecked; a plain network is called in the autocast
        and precision that surround the sampler. Raises ValueError for another shape."""
        points, cond = x.view(-1, *self.shape), self._cond
        if isinstance(self.network, PreparedNetwork):
            assert cond is not None
            prediction = self.network.evaluate(points, self._real_steps[steps], chains, cond)
        else:
            cond = None if cond is None else cond[chains]
            with as_asked(), _of_their_type(self.network, points, cond):
                # A network may scale its input in place: it is not the chain's own.
                prediction = self.network(points.clone(), self.timesteps[steps], cond)
        if not isinstance(prediction, Tensor):
            raise InputError(
                f"the network must return a tensor of the shape it is given; got a "
                f"{type(prediction).__name__}"
            )
        if prediction.shape != points.shape:
            raise InputError(
                f"the network must return the shape it is given, {tuple(points.shape)}; "
                f"got {tuple(prediction.shape)}"
            )
        if prediction.is_complex():
            raise InputError(f"the network must return real numbers; got {prediction.dtype}")
        if prediction.device != points.device:
            raise InputError(
                f"the network must answer where it is asked, on {points.device}; its prediction is "
                f"on {prediction.device}"
            )
        return prediction.reshape(x.shape).to(x.dtype)

    def x0(self, x: Tensor, prediction: Tensor, steps: Tensor) -> Tensor:
        """Clipped x̂0 of (…, D) predictions at (…) steps; NaN where a prediction is not finite."""
        x0 = self._unclipped(x, prediction, steps)
        if self.clip_range is None:
            return x0
        # Clipping would hide an infinity; 0·∞ is NaN, which it leaves alone.
        return self.clip(x0.add_(prediction * 0))

    def _unclipped(self, x: Tensor, prediction: Tensor, steps: Tensor) -> Tensor:
        u, v = self.uv[steps].unsqueeze(-1).unbind(-2)
        return torch.addcmul(u * x, v, prediction)

    def clip(self, x0: Tensor) -> Tensor:
        """Clip a draft as the target is clipped (in place)."""
        return x0 if self.clip_range is None else x0.clamp_(-self.clip_range, self.clip_range)

    def non_finite(self, step: int, chain: int) -> NonFiniteError:
        """The error for a prediction that is not finite."""
        return NonFiniteError(
            f"the network returned a NaN or infinite value at step {step} (timestep "
            f"{int(self.timesteps[step])}) of chain {chain}"
        )

    def _check(self, prediction: Tensor, steps: Tensor, chains: Tensor) -> None:
        # One reduction in the common case; a finite overflow of the sum is cleared below.
        if torch.isfinite(prediction.sum()):
            return
        bad = ~torch.isfinite(prediction).all(-1)
        if bad.any():
            row = int(bad.nonzero()[0])
            raise self.non_finite(int(steps[row]), int(chains[row]))
