"""diffusion_policy (Chi et al., 2023): its policies, with chunks sampled by this package.

    import asd_policy.integrations.diffusion_policy as asd
    policy = asd.accelerate(policy, sampler="asd")     # a policy of theirs, and still one

One method is replaced, ``conditional_sample``, for low-dimensional and image policies, U-Nets and
transformers: encoders, normalizers and ``predict_action`` stay theirs.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from asd_policy.ambient import own_precision
from asd_policy.errors import InputError, NonFiniteError
from asd_policy.integrations.diffusers_chain import chain_of
from asd_policy.networks import OthersUnet1D
from asd_policy.policy.chunks import chunk_sampler
from asd_policy.sampler import Sampler
from asd_policy.samplers.config import SamplerConfig
from asd_policy.samplers.result import Noise, Stats, streams
from asd_policy.schedule import Schedule

_PARTS = ("model", "noise_scheduler", "num_inference_steps", "conditional_sample")
_CHUNKS = 4  # that drafts learn from
_KEPT = 4  # samplers, of batches that are conditioned or shaped differently


def accelerate(
    policy: Any,
    sampler: str | SamplerConfig = "asd",
    *,
    engine: str = "auto",
    precision: str = "fp32",
    compile: bool = False,
    copy: bool = True,
    verbose: bool = True,
    **options: Any,
) -> Any:
    """The same policy, its chunks sampled by another sampler.

    Its own loop comes back with ``del policy.conditional_sample``. ``num_inference_steps`` is read
    at each call, and so are weights: the policy may be trained on. The first chunk of a kind takes
    longer: drafts learn from four throw-away chunks, so that afterwards a seed gives the same ones.

    Args:
        policy: one of diffusion_policy's with a ``conditional_sample``, on its device.
        sampler, options: a name with options of ``SamplerConfig``, or a ``SamplerConfig``. "asd"
            samples exactly the distribution of the policy's own DDPM. A policy that samples by DDIM
            keeps it with "ddim"; with ``steps=100`` "asd" samples the DDPM that it was trained for.
        engine, precision, compile: as for ``DiffusionPolicy``.
        copy: keep a copy of a U-Net's weights in a form that is faster to sample (once more the
            network's memory); without, the network is called as it is.
        verbose: say in one line what is run.

    Raises:
        ValueError: no such policy, an unknown option, or a sampler that its chain does not allow.
    """
    missing = [part for part in _PARTS if not hasattr(policy, part)]
    if missing:
        raise InputError(
            "expected a policy of diffusion_policy that samples by diffusion, got a "
            f"{type(policy).__name__} without {', '.join(missing)}"
        )
    vars(policy).pop("conditional_sample", None)  # of an earlier call
    config = SamplerConfig.named(sampler, **options)
    made = ConditionalSample(policy, config, (engine, precision, compile), copy)
    if verbose:
        print(f"asd-policy: {made.description}")
    vars(policy)["conditional_sample"] = made
    return policy


class ConditionalSample:
    """Stands in the place of a policy's ``conditional_sample``.

    Attributes:
        stats: what the last chunks cost; None before the first.
    """

    def __init__(
        self, policy: Any, config: SamplerConfig, place: tuple[str, str, bool], copy: bool
    ) -> None:
        self.policy, self.config, self._place, self._copy = policy, config, place, copy
        self.stats: Stats | None = None
        self._samplers: OrderedDict[Any, Sampler] = OrderedDict()
        self._chains: dict[tuple[int, float], tuple[SamplerConfig, Schedule]] = {}
        self._scheduler: Any = None
        parameters = inspect.signature(type(policy).conditional_sample).parameters
        self._names = tuple(n for n in ("local_cond", "global_cond", "cond") if n in parameters)
        self._chain({})  # what cannot be run is said now

    @property
    def description(self) -> str:
        """Sampler and chain, in a line."""
        config, schedule = self._chain({})
        chain = config.schedule(schedule)
        kind = "DDPM" if chain.config.eta is None else f"DDIM, eta={chain.config.eta:g},"
        text = f"{config.name} on a {kind} of {chain.num_steps} steps"
        if chain.num_steps != self.policy.num_inference_steps:
            text += f"; the policy's own loop has {self.policy.num_inference_steps}"
        elif chain.config.eta is None and chain.num_steps < schedule.config.num_steps:
            text += (
                "; diffusers 0.11.1, which diffusion_policy pins, goes from t to t-1 at each of "
                "them, and so does not remove all noise: this does, as later releases do"
            )
        return text

    def __call__(
        self,
        condition_data: Tensor,
        condition_mask: Tensor,
        local_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        cond: Tensor | None = None,
        **step: Any,
    ) -> Tensor:
        """(B, T, D) trajectories, those of ``condition_data`` where the mask is set.

        Where some coordinates are fixed (inpainting), the chain runs over the free ones alone, and
        the network sees the fixed ones at every step, as in the policy's own loop.

        Args:
            generator: seeds a random stream for each row.
            step: what the policy hands to its scheduler's steps: ``eta`` of a DDIM, nothing else.

        Raises:
            ValueError: masks that differ between rows, conditions that the policy has not, or
                arguments of a step that are not known.
            NonFiniteError: a NaN or infinity in a condition or in the sample.
        """
        given = {"local_cond": local_cond, "global_cond": global_cond, "cond": cond}
        conds = {name: value for name, value in given.items() if value is not None}
        unknown = conds.keys() - set(self._names)
        if unknown:
            raise InputError(f"this policy takes {', '.join(self._names)}; got {sorted(unknown)}")
        free = _free(condition_data, condition_mask)
        with torch.inference_mode(), own_precision(networks_too=True):
            rows = _rows(condition_data, free, conds)
            if rows is not None and not bool(rows.isfinite().all()):
                raise NonFiniteError("a condition holds a NaN or infinite value")
            sampler = self._sampler(condition_data, free, conds, rows, step)
            noise = sampler.noise(streams(generator, len(condition_data)))
            x, self.stats = sampler.draw(noise, rows)
            if not bool(x.isfinite().all()):
                raise NonFiniteError("the sample holds a NaN or infinite value")
        made = condition_data.detach().clone()
        made.flatten(1)[:, free] = x.flatten(1).to(made.dtype)
        return made

    def _chain(self, step: dict[str, Any]) -> tuple[SamplerConfig, Schedule]:
        given = {name: value for name, value in step.items() if value is not None}
        eta = float(given.pop("eta", 0.0))
        if given:
            raise InputError(f"expected no argument of a step but eta, got {', '.join(given)}")
        steps, scheduler = int(self.policy.num_inference_steps), self.policy.noise_scheduler
        if scheduler is not self._scheduler:  # another one in its place: all that was made is stale
            self._scheduler = scheduler
            self._chains.clear()
            self._samplers.clear()
        if (steps, eta) not in self._chains:
            self._chains[steps, eta] = chain_of(scheduler, steps, self.config, eta)
        return self._chains[steps, eta]

    def _sampler(
        self,
        data: Tensor,
        free: Tensor,
        conds: dict[str, Tensor],
        rows: Tensor | None,
        step: dict[str, Any],
    ) -> Sampler:
        """The one for such batches, made when the first of them comes."""
        config, schedule = self._chain(step)
        shapes = tuple((name, value.shape[1:]) for name, value in conds.items())
        key = (
            data.shape[1:], data.device, tuple(free.tolist()), shapes, config,
            schedule.num_steps, id(self.policy.model),
        )  # fmt: skip
        if key not in self._samplers:
            network = self._network(data, free, conds, rows)
            whole = len(free) == data[0].numel()
            shape: Any = tuple(data.shape[1:]) if whole else (len(free),)
            made = chunk_sampler(network, schedule, shape, config, data.device, *self._place)
            self._samplers[key] = _taught(made, None if rows is None else rows[:1])
            if len(self._samplers) > _KEPT:
                self._samplers.popitem(last=False)[1].close()
        self._samplers.move_to_end(key)
        return self._samplers[key]

    def _network(
        self, data: Tensor, free: Tensor, conds: dict[str, Tensor], rows: Tensor | None
    ) -> nn.Module:
        """In our inference form where it is a U-Net with no other condition than a global one."""
        model = self.policy.model
        only_global = set(conds) == {"global_cond"} and len(free) == data[0].numel()
        if self._copy and only_global:
            try:
                return OthersUnet1D(model)
            except ValueError:  # of another construction: it is called as it is
                pass
        return _AsItIs(model, data.shape[1:], free, conds, rows)


def _taught(sampler: Sampler, row: Tensor | None) -> Sampler:
    """Drafts learn from a few throw-away chunks, and no more: a seed then gives the same chunks."""
    if "draft" in sampler.config.method.options:
        streams = [
            torch.Generator(sampler.engine.like.device).manual_seed(n) for n in range(_CHUNKS)
        ]
        sampler.calibrate([(sampler.noise([stream]), row) for stream in streams], _CHUNKS)
        sampler.freeze()
    return sampler


class _AsItIs(nn.Module):
    """A policy's network as samplers call it: free coordinates in, prediction of those out.

    What a chain is conditioned on is one row: its fixed coordinates, then its conditions.
    """

    def __init__(
        self,
        model: nn.Module,
        shape: torch.Size,
        free: Tensor,
        conds: dict[str, Tensor],
        rows: Tensor | None,
    ) -> None:
        super().__init__()
        self.model, self._shape, self._free = model, shape, free
        self._fixed = _fixed(free, shape.numel())
        self._sizes = [(name, value.shape[1:]) for name, value in conds.items()]
        self.global_cond_dim = 0 if rows is None else rows.shape[1]

    def forward(self, x: Tensor, timesteps: Tensor, cond: Tensor | None = None) -> Tensor:
        whole = x.new_empty(len(x), self._shape.numel())
        whole[:, self._free] = x.flatten(1)
        named = {}
        if cond is not None:
            fixed, *parts = cond.split(
                [len(self._fixed), *(size.numel() for _, size in self._sizes)], 1
            )
            whole[:, self._fixed] = fixed
            for (name, size), part in zip(self._sizes, parts, strict=True):
                named[name] = part.unflatten(1, size)
        out: Tensor = self.model(whole.unflatten(1, self._shape), timesteps, **named)
        return out.flatten(1)[:, self._free].view_as(x)


def _free(data: Tensor, mask: Tensor) -> Tensor:
    """Flat numbers of the coordinates that are not given."""
    if mask.shape != data.shape or mask.dtype != torch.bool:
        raise InputError(
            f"condition_mask must be bool of shape {tuple(data.shape)}, got {mask.dtype} of "
            f"{tuple(mask.shape)}"
        )
    if bool((mask != mask[:1]).any()):
        raise InputError("condition_mask must be the same in every row; these differ")
    if bool(mask.all()):
        raise InputError("condition_mask fixes every coordinate: nothing is left to sample")
    return (~mask[0]).flatten().nonzero().flatten()


def _fixed(free: Tensor, count: int) -> Tensor:
    given = torch.ones(count, dtype=torch.bool, device=free.device)
    given[free] = False
    return given.nonzero().flatten()


def _rows(data: Tensor, free: Tensor, conds: dict[str, Tensor]) -> Tensor | None:
    """(B, …) fixed coordinates and conditions side by side; None where there are none."""
    fixed = data.flatten(1)[:, _fixed(free, data[0].numel())]
    rows = torch.cat([fixed, *(value.flatten(1) for value in conds.values())], 1)
    return rows.to(data.dtype) if rows.shape[1] else None


def difference_to_its_loop(policy: Any, *conditions: Any, seed: int = 0, **named: Any) -> float:
    """How far sequential DDPM here is from the policy's own loop, on the same noise: the largest
    absolute difference of a coordinate. (5e-6, say, is rounding.)

    Args:
        policy: accelerated. conditions, named: of ``conditional_sample``, without a generator.
        seed: of the noise.
    """
    ours: ConditionalSample = vars(policy)["conditional_sample"]
    data, mask = conditions[:2]
    device = data.device
    with torch.no_grad():
        theirs = type(policy).conditional_sample(
            policy, *conditions, generator=torch.Generator(device).manual_seed(seed), **named
        )
    generator = torch.Generator(device).manual_seed(seed)
    free, steps = _free(data, mask), int(policy.num_inference_steps)
    drawn = [
        torch.randn(data.shape, generator=generator, device=device, dtype=data.dtype)
        for _ in range(steps)  # the first point, and a step's noise but the last one's
    ]
    flat = torch.stack([*drawn, torch.zeros_like(data)], 1).flatten(2)[:, :, free]
    noise = Noise(flat[:, 0], flat[:, 1:], flat.new_zeros(len(data), steps))
    plain = ConditionalSample(policy, SamplerConfig("ddpm"), ours._place, ours._copy)
    conds = {name: value for name, value in named.items() if value is not None}
    with torch.inference_mode(), own_precision(networks_too=True):
        rows = _rows(data, free, conds)
        x, _ = plain._sampler(data, free, conds, rows, {}).draw(noise, rows)
    return float((x.flatten(1) - theirs.flatten(1)[:, free]).abs().max())
