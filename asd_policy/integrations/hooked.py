"""Chunks drawn in the place of a policy's own loop over the steps of a diffusers scheduler.

What the policies of diffusion_policy and of LeRobot share: a plain object, no module, that stands
where their ``conditional_sample`` was, so that all else of a policy stays what it was.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from asd_policy.ambient import own_precision
from asd_policy.errors import NonFiniteError
from asd_policy.integrations.diffusers_chain import chain_of, is_ddim
from asd_policy.networks import OthersUnet1D
from asd_policy.policy.chunks import chunk_sampler
from asd_policy.sampler import Sampler
from asd_policy.samplers.config import SamplerConfig
from asd_policy.samplers.result import Noise, Stats, streams
from asd_policy.schedule import Schedule

_CHUNKS = 4  # that drafts learn from
_KEPT = 4  # samplers, of batches that are conditioned or shaped differently


@dataclass(frozen=True)
class Place:
    """What chunks are drawn by, as for ``DiffusionPolicy``; and whether a U-Net's weights are
    copied into a form that is faster to sample."""

    engine: str = "auto"
    precision: str = "fp32"
    compile: bool = False
    copy: bool = True


@dataclass(frozen=True)
class Kind:
    """Chunks that one sampler can draw.

    Attributes:
        shape: of what is sampled. width: numbers in a row of conditions, 0 without. device: theirs.
        network: makes the network, as samplers call it. key: what else tells it from others.
    """

    shape: tuple[int, ...]
    width: int
    device: torch.device
    network: Callable[[], nn.Module]
    key: Hashable = None


class Hook:
    """Draws chunks with the network, scheduler and number of steps that ``owner`` has at the time.

    Args:
        owner: has ``noise_scheduler``, ``num_inference_steps`` and the ``conditional_sample`` that
            is replaced. config: how chunks are drawn, and place: by what.

    Attributes:
        stats: what the last chunks cost; None before the first.

    Raises:
        ValueError: a scheduler or setting that this package has not, or a sampler that the chain
            does not allow.
    """

    def __init__(self, owner: Any, config: SamplerConfig, place: Place) -> None:
        self.owner, self.config, self.place = owner, config, place
        self.stats: Stats | None = None
        self._samplers: OrderedDict[Any, Sampler] = OrderedDict()
        self._chains: dict[tuple[int, float], tuple[SamplerConfig, Schedule]] = {}
        self._scheduler: Any = None

    def model(self) -> nn.Module:
        """The network that the policy has now."""
        raise NotImplementedError

    @property
    def own(self) -> Callable[..., Tensor]:
        """The policy's own loop."""
        method = type(self.owner).conditional_sample
        bound: Callable[..., Tensor] = method.__get__(self.owner)
        return bound

    def chain(self, eta: float = 0.0) -> tuple[SamplerConfig, Schedule]:
        """What is run now: a sampler, and the schedule that the network was trained for.

        Args:
            eta: of the policy's own DDIM.
        """
        scheduler, steps = self.owner.noise_scheduler, int(self.owner.num_inference_steps)
        if scheduler is not self._scheduler:  # another one in its place: all that was made is stale
            self._scheduler = scheduler
            self._chains.clear()
            self._samplers.clear()
        if (steps, eta) not in self._chains:
            config, schedule = chain_of(scheduler, steps, self.config, eta)
            config.schedule(schedule)  # refuses what cannot be run
            self._chains[steps, eta] = config, schedule
        return self._chains[steps, eta]

    @property
    def description(self) -> str:
        """Sampler, chain, calls and memory, in a line."""
        config, trained = self.chain()
        chain = config.schedule(trained)
        kind = "DDPM" if chain.config.eta is None else f"DDIM, eta={chain.config.eta:g},"
        text = f"{config.name} on a {kind} of {chain.num_steps} steps, {self._calls(chain)}"
        own, own_steps = is_ddim(self.owner.noise_scheduler), int(self.owner.num_inference_steps)
        if own and chain.config.eta is None:
            text += (
                "; its network was trained for this, but the policy's own loop is a DDIM of "
                f"{own_steps} steps ({own_steps} calls), which samples another distribution"
            )
        elif chain.num_steps != own_steps:
            text += f"; the policy's own loop has {own_steps}"
        return text + self._memory()

    def _calls(self, chain: Schedule) -> str:
        if self.stats is not None:
            return f"{float(self.stats.calls.float().mean()):.3g} network calls a chunk"
        bound = "up to " * (self.config.name == "asd")
        return f"{bound}{chain.num_steps} network calls a chunk"

    def _memory(self) -> str:
        unet = self.as_unet()
        if unet is None:
            return ""
        size = sum(p.numel() * max(4, p.element_size()) for p in unet.parameters())
        size //= 2 if self.place.precision == "bf16" else 1
        return f"; a copy of its U-Net takes {human(size)} more (copy=False: none)"

    def as_unet(self) -> OthersUnet1D | None:
        """The network to be copied into our inference form; None where it is called as it is."""
        if not self.place.copy:
            return None
        try:
            return OthersUnet1D(self.model())
        except ValueError:  # of another construction
            return None

    def draw(
        self,
        kind: Kind,
        rows: Tensor | None,
        batch: int,
        generator: torch.Generator | None = None,
        initial: Tensor | None = None,
        eta: float = 0.0,
    ) -> Tensor:
        """(batch, \\*kind.shape) samples, each from a random stream of its own.

        Args:
            rows: (batch, kind.width) conditions. generator: seeds the streams; None is PyTorch's.
            initial: (batch, \\*kind.shape) the points to start from, in place of drawn ones.

        Raises:
            NonFiniteError: a NaN or infinity in a condition or in the sample.
            ValueError: ``initial`` of another shape.
        """
        with torch.inference_mode(), own_precision(networks_too=True):
            if rows is not None and not bool(rows.isfinite().all()):
                raise NonFiniteError("a condition holds a NaN or infinite value")
            sampler = self.sampler(kind, eta)
            noise = sampler.noise(streams(generator, batch))
            if initial is not None:
                given = replace(noise, initial=initial)
                noise = given.fitted(batch, sampler.schedule.num_steps, sampler.engine.like)
            x, self.stats = sampler.draw(noise, rows)
            if not bool(x.isfinite().all()):
                raise NonFiniteError("the sample holds a NaN or infinite value")
        return x.clone()

    def sampler(self, kind: Kind, eta: float = 0.0) -> Sampler:
        """The one for such chunks, made when the first of them is asked for."""
        config, schedule = self.chain(eta)
        key = (
            kind.shape, kind.width, kind.device, kind.key, config, schedule.num_steps,
            id(self.model()),
        )  # fmt: skip
        if key not in self._samplers:
            place, shape = self.place, kind.shape
            made = chunk_sampler(
                kind.network(), schedule, shape, config, kind.device,
                place.engine, place.precision, place.compile,
            )  # fmt: skip
            self._samplers[key] = taught(made, kind.width)
            if len(self._samplers) > _KEPT:
                self._samplers.popitem(last=False)[1].close()
        self._samplers.move_to_end(key)
        return self._samplers[key]

    # ---- before the robot moves ------------------------------------------------------------------

    def warm(self, kind: Kind) -> None:
        """Do now what the first chunk would do first: compile, capture, time, teach, and draw."""
        generator = torch.Generator(kind.device).manual_seed(0)
        for _ in range(2):  # the second is as all that follow
            self.draw(kind, made_up(kind.width, 1, kind.device), 1, generator)

    def difference(
        self, kind: Kind, rows: Tensor | None, like: Tensor, pick: Callable[[Tensor], Tensor],
        theirs: Callable[[], Tensor], seed: int = 0,
    ) -> float:  # fmt: skip
        """How far this package's sequential chain is from the policy's own loop on the same noise:
        the largest absolute difference of a number. (5e-6, say, is rounding.)

        Args:
            rows: conditions of the chunks. like: (B, …) what their loop draws noise of, each step.
            pick: (B, …) like it → (B, D) what is sampled of it. theirs: runs their loop, with
                PyTorch's own generator.
        """
        name = "ddim" if is_ddim(self.owner.noise_scheduler) else "ddpm"
        plain = type(self)(self.owner, SamplerConfig(name), self.place)
        steps = int(self.owner.num_inference_steps)
        devices = [like.device] if like.is_cuda else []
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(seed)
            their = pick(theirs())
            torch.manual_seed(seed)
            drawn = [torch.randn_like(like) for _ in range(steps)]  # none in the last step
        flat = [pick(each) for each in [*drawn, torch.zeros_like(like)]]
        uniform = flat[0].new_zeros(len(like), steps)
        noise = Noise(flat[0], torch.stack(flat[1:], 1), uniform)
        with torch.inference_mode(), own_precision(networks_too=True):
            x, _ = plain.sampler(kind).draw(noise, rows)
        return float((x.flatten(1) - their).abs().max())


def taught(sampler: Sampler, width: int) -> Sampler:
    """Drafts learn from a few throw-away chunks, and no more: a seed then gives the same chunks.

    Their conditions are made up, not those of the first observation, on which all later chunks
    would depend.
    """
    if "draft" in sampler.config.method.options:
        device = sampler.engine.like.device
        generators = [torch.Generator(device).manual_seed(n) for n in range(_CHUNKS)]
        rows = made_up(width, _CHUNKS, device)
        inputs = [
            (sampler.noise([generator]), None if rows is None else rows[n : n + 1])
            for n, generator in enumerate(generators)
        ]
        sampler.calibrate(inputs, _CHUNKS)
        sampler.freeze()
    return sampler


def made_up(width: int, count: int, device: torch.device) -> Tensor | None:
    """(count, width) conditions in [−1, 1), always the same; None without."""
    if not width:
        return None
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.rand(count, width, generator=generator, device="cpu").mul_(2).sub_(1).to(device)


def human(size: int) -> str:
    """Bytes as people read them: 261_000_000 → "249 MiB"."""
    units = ("B", "KiB", "MiB", "GiB")
    power = min(3, max(0, (max(1, size).bit_length() - 1) // 10))
    return f"{size / 1024**power:.3g} {units[power]}"
