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
from asd_policy.denoiser import check_mode
from asd_policy.engine import ENGINES
from asd_policy.errors import InputError, NonFiniteError
from asd_policy.integrations.diffusers_chain import chain_of, is_ddim
from asd_policy.networks import OthersUnet1D
from asd_policy.networks.inference import PRECISIONS, tensor_cores
from asd_policy.networks.prepare import copied_bytes
from asd_policy.networks.weights import hooks_of
from asd_policy.policy.chunks import CHUNKS, chunk_sampler
from asd_policy.sampler import Sampler
from asd_policy.samplers.config import SamplerConfig
from asd_policy.samplers.result import Noise, Stats, Streams, streams
from asd_policy.schedule import Schedule, check_choice

_KEPT = 4  # samplers, of batches that are conditioned or shaped differently
_ROUNDING = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 0.2}  # of a whole chain, by precision


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


@dataclass(frozen=True)
class Asked:
    """What a call of ``conditional_sample`` asks for.

    Attributes:
        kind: of chunks. batch: how many. rows: (batch, kind.width) conditions, or None.
        whole: shape of one chunk as the policy's own loop draws noise for it. free: flat numbers of
            its coordinates that are sampled; None for all. eta: of the policy's own DDIM.
    """

    kind: Kind
    batch: int
    rows: Tensor | None
    whole: tuple[int, ...]
    free: Tensor | None = None
    eta: float = 0.0

    def pick(self, x: Tensor) -> Tensor:
        """(B, \\*whole) → (B, D), what is sampled."""
        flat = x.flatten(1)
        return flat if self.free is None else flat[:, self.free]


class Hook:
    """Draws chunks with the network, scheduler and number of steps that ``owner`` has at the time.

    Args:
        owner: has ``noise_scheduler``, ``num_inference_steps`` and the ``conditional_sample`` that
            is replaced. config: how chunks are drawn, and place: by what.

    Attributes:
        stats: what the last chunks cost; None before the first, and of the owner's own loop.
        calls: network calls of a chunk, measured by :meth:`warm`; None before.

    Raises:
        ValueError: a scheduler or setting that this package has not, or a sampler that the chain
            does not allow.
    """

    def __init__(self, owner: Any, config: SamplerConfig, place: Place) -> None:
        self.owner, self.config, self.place = owner, config, place
        self.stats: Stats | None = None
        self.calls: float | None = None
        self._samplers: OrderedDict[Any, Sampler] = OrderedDict()
        self._chains: dict[tuple[int, float], tuple[SamplerConfig, Schedule]] = {}
        self._scheduler: tuple[Any, Any] = (None, None)  # and its settings

    def check_place(self, device: torch.device | str | None = None) -> None:
        """Refuse now what the robot's first chunk would be refused with.

        Args:
            device: where the policy will be; None: where it is.

        Raises:
            ValueError: an engine or precision that is unknown, or not to be had there; a network
                whose layers mix the rows of a call.
        """
        place = self.place
        device = next(self.model().parameters()).device if device is None else torch.device(device)
        check_choice("engine", place.engine, ENGINES)
        check_choice("precision", place.precision, PRECISIONS)
        cuda = {"engine 'cuda_graph'": place.engine == "cuda_graph"}
        cuda["precision 'tf32'"] = place.precision == "tf32"
        if device.type != "cuda" and any(cuda.values()):
            asked = " and ".join(what for what, wanted in cuda.items() if wanted)
            raise InputError(f"{asked} needs a CUDA device, the policy is on {device}")
        if (place.precision != "fp32" or place.compile) and self.as_unet() is None:
            raise InputError(
                "precision and compile are for a copy of a U-Net: expected copy=True and a network "
                "of Chi et al.'s kind that global conditions alone are given to, got "
                f"copy={place.copy} and {type(self.model()).__name__}"
            )
        if not self.model().training:  # else it is looked at when it has been trained
            check_mode(self.model())

    def model(self) -> nn.Module:
        """The network that the policy has now."""
        raise NotImplementedError

    @property
    def eta(self) -> float:
        """That the policy's own DDIM is run with."""
        return 0.0

    def asked(self, *given: Any, **named: Any) -> Asked:
        """What arguments of ``conditional_sample`` ask for."""
        raise NotImplementedError

    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of ``conditional_sample`` for one chunk, of made-up conditions."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes its samplers itself, for the network that it belongs to."""
        made = {"_samplers": OrderedDict(), "_chains": {}, "_scheduler": (None, None)}
        return vars(self) | made

    def again(self, config: SamplerConfig) -> Hook:
        """Another one in the same place, with another sampler."""
        return type(self)(self.owner, config, self.place)

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
        now = scheduler, scheduler.config  # which is another object once an entry is
        if any(one is not other for one, other in zip(now, self._scheduler, strict=True)):
            self._scheduler = now  # all that was made is stale
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
        return self.chain_line + self._memory()

    @property
    def chain_line(self) -> str:
        """Sampler, chain and calls, and where the policy's own chain is another."""
        config, trained = self.chain(self.eta)
        chain = config.schedule(trained)
        kind = "DDPM" if chain.config.eta is None else f"DDIM, eta={chain.config.eta:g},"
        text = f"{config.name} on a {kind} of {chain.num_steps} steps, {self._calls(chain)}"
        own, own_steps = is_ddim(self.owner.noise_scheduler), self._own_steps
        if own and chain.config.eta is None:
            text += (
                "; its network was trained for this, but the policy's own loop is a DDIM of "
                f"{own_steps} steps ({own_steps} calls), which samples another distribution"
            )
        elif chain.num_steps != own_steps:
            text += f"; the policy's own loop has {own_steps}"
        return text

    def _calls(self, chain: Schedule) -> str:
        bound = "up to " * (self.config.name in ("asd", "paradigms"))
        calls = f"{bound}{chain.num_steps}" if self.calls is None else f"{self.calls:.3g}"
        return f"{calls} network calls a chunk"

    def _memory(self) -> str:
        unet = self.as_unet()
        if unet is None:
            return ""
        config, trained = self.chain(self.eta)
        size = copied_bytes(unet, config.schedule(trained).num_steps, self.place.precision)
        return f"; a copy of its U-Net takes {human(size)} more (copy=False: none)"

    def as_unet(self) -> OthersUnet1D | None:
        """The network to be copied into our inference form; None where it is called as it is."""
        try:
            return OthersUnet1D(self.model()) if self.place.copy else None
        except ValueError:  # of another construction
            return None

    @torch.compiler.disable
    def draw(
        self, asked: Asked, generator: Streams = None, initial: Tensor | None = None
    ) -> Tensor:
        """(batch, \\*kind.shape) samples, each from a random stream of its own.

        Args:
            generator: seeds the streams; None is PyTorch's. A sequence holds the streams.
            initial: (batch, \\*kind.shape) the points to start from, in place of drawn ones.

        Raises:
            NonFiniteError: a NaN or infinity in a condition or in the sample.
            ValueError: ``initial`` of another shape.
        """
        rows = asked.rows
        with torch.inference_mode(), own_precision(networks_too=True):
            if rows is not None and not bool(rows.isfinite().all()):
                raise NonFiniteError("a condition holds a NaN or infinite value")
            sampler = self.sampler(asked.kind, asked.eta)
            noise = sampler.noise(streams(generator, asked.batch))
            if initial is not None:
                expected, found = (asked.batch, *asked.kind.shape), tuple(initial.shape)
                if found != expected:
                    raise InputError(
                        f"the noise to start from must have shape {expected}, got {found}"
                    )
                steps, like = sampler.schedule.num_steps, sampler.engine.like
                noise = replace(noise, initial=initial).fitted(asked.batch, steps, like)
            x, self.stats = sampler.draw(noise, rows)
            if not bool(x.isfinite().all()):
                raise NonFiniteError("the sample holds a NaN or infinite value")
        return x.clone()

    def sampler(self, kind: Kind, eta: float = 0.0) -> Sampler:
        """The one for such chunks, made when the first of them is asked for."""
        check_mode(self.model())
        config, schedule = self.chain(eta)
        key = self._key(kind, eta)
        if key not in self._samplers:
            place, shape = self.place, kind.shape
            made = chunk_sampler(
                kind.network(), schedule, shape, config, kind.device,
                place.engine, place.precision, place.compile,
            )  # fmt: skip
            self._samplers[key] = made
            if len(self._samplers) > _KEPT:
                self._samplers.popitem(last=False)[1].close()
        self._samplers.move_to_end(key)
        return self._samplers[key]

    def _key(self, kind: Kind, eta: float) -> Hashable:
        """What a sampler cannot go on without: the layers, too, in whose place adapters are put,
        and whether a U-Net is copied; one with hooks, which a copy would not run, is not."""
        config, schedule = self.chain(eta)
        layers = tuple(self.model().modules())
        copied = self.place.copy and not any(map(hooks_of, layers))
        own = kind.shape, kind.width, kind.device, kind.key
        return *own, config, schedule.num_steps, tuple(map(id, layers)), copied

    # ---- before the robot moves ------------------------------------------------------------------

    @property
    def cold(self) -> bool:
        """Whether :meth:`warm` has something to do, as it has anew in a copy or another place."""
        given, named = self.example()
        asked = self.asked(*given, **named)
        return self._key(asked.kind, asked.eta) not in self._samplers

    def warm(self) -> None:
        """Do now what the first chunk would do first: compile, capture, time, teach drafts."""
        given, named = self.example()
        asked = self.asked(*given, **named)
        generator, calls = torch.Generator(asked.kind.device).manual_seed(0), []
        for _ in range(CHUNKS):
            self.draw(asked, generator)
            assert self.stats is not None
            calls.append(float(self.stats.calls[0]))
        self.calls = sum(calls) / len(calls)

    def difference(self, *given: Any, seed: int = 0, **named: Any) -> tuple[float, float]:
        """How far this package's sequential chain is from the policy's own loop on the same noise:
        the largest absolute difference of a number (5e-6, say, is rounding), and the largest
        number of the loop's.

        Args:
            given, named: of ``conditional_sample``, without a generator. seed: of the noise.
        """
        asked, steps = self.asked(*given, **named), self._own_steps
        like = torch.empty(asked.batch, *asked.whole, device=asked.kind.device)
        cores = None if self.as_unet() is None else self.place.precision == "tf32"  # as in our copy
        with torch.random.fork_rng([like.device] if like.is_cuda else []), torch.no_grad():
            torch.manual_seed(seed)
            with tensor_cores(cores):
                theirs = asked.pick(self.own(*given, **named))
            torch.manual_seed(seed)
            # The last is that of the last step: most chains have none there, and do not use it.
            flat = [asked.pick(torch.randn_like(like)) for _ in range(steps + 1)]
        noise = Noise(flat[0], torch.stack(flat[1:], 1), flat[0].new_zeros(len(like), steps))
        with torch.inference_mode(), own_precision(networks_too=True):
            x = self._sequentially(asked, noise)
        return float((x.flatten(1) - theirs).abs().max()), float(theirs.abs().max())

    def _sequentially(self, asked: Asked, noise: Noise) -> Tensor:
        """The policy's own chain, by the very engine that draws its chunks where that is of it."""
        own = SamplerConfig(self._own_name)
        config, trained = chain_of(self.owner.noise_scheduler, self._own_steps, own, asked.eta)
        made = self.sampler(asked.kind, asked.eta)
        if made.schedule.to_dict() != config.schedule(trained).to_dict():
            made = self.again(config).sampler(asked.kind, asked.eta)
        plan = made.plan(asked.batch)
        return config.method.draw(made.engine, config, plan, noise, asked.rows)[0]

    @property
    def _own_name(self) -> str:
        return "ddim" if is_ddim(self.owner.noise_scheduler) else "ddpm"

    @property
    def _own_steps(self) -> int:
        asked, config = int(self.owner.num_inference_steps), self.owner.noise_scheduler.config
        return min(asked, int(config.num_train_timesteps))  # of more, diffusers 0.11.1 runs these

    def check(self) -> str:
        """Compare with the policy's own loop, and tell what was found, in a line.

        Raises:
            ValueError: they are not equal up to rounding.
        """
        given, named = self.example()
        worst, largest = self.difference(*given, **named)
        found = f"sequential {self._own_name} equals your loop to {worst:.1g}"
        allowed = _ROUNDING[self.place.precision] * max(1.0, largest)
        if not worst <= allowed:
            raise InputError(
                f"the self-check failed: {found}, where {allowed:.1g} is rounding "
                f"({self.chain_line})"
            )
        calls, own = f"{self.calls:.3g} calls", self._own_steps
        other = self._own_name == "ddim" and self.chain(self.eta)[0].name != "ddim"
        return f"{found}; {calls} in place of {own}" + other * ", on the DDPM in place of the DDIM"


def put(
    hook: Hook, verbose: bool, warmup: bool, check: bool, device: torch.device | str | None = None
) -> None:
    """Put it in the place of its owner's ``conditional_sample``, and say what is run.

    Args:
        device: as for ``Hook.check_place``, which raises.
    """
    hook.check_place(device)
    if warmup or check:
        hook.warm()
    if verbose:
        print(f"asd-policy: {hook.description}")
    if check:
        print(f"asd-policy: {hook.check()}")
    vars(hook.owner)["conditional_sample"] = hook


def made_up(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Conditions in [−1, 1), always the same."""
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.rand(shape, generator=generator, device="cpu").mul_(2).sub_(1).to(device)


def human(size: int) -> str:
    """Bytes as people read them: 261_000_000 → "249 MiB"."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = sum(size >= 999.5 * 1024**n for n in range(4))  # more would be 1.02e+03 of a unit
    return f"{size / 1024**power:.3g} {units[power]}"
