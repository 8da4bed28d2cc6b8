"""A trained diffusion policy of robomimic's, its chunks drawn by this package."""

from __future__ import annotations

import copy
import inspect
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch
from robomimic.algo import RolloutPolicy
from torch import Tensor

from asd_policy.ambient import own_precision
from asd_policy.errors import CopyError, NonFiniteError
from asd_policy.integrations.robomimic.actions import ActionScale, statistics_of
from asd_policy.integrations.robomimic.chain import as_unet, check_algorithm, describe, for_chain
from asd_policy.integrations.robomimic.observations import ObservationScale
from asd_policy.integrations.robomimic_format import trained_schedule
from asd_policy.policy.checkpoint import difference_table
from asd_policy.policy.chunks import ChunkSampler
from asd_policy.policy.draws import ChunkStats, chunk_stats
from asd_policy.samplers.config import SamplerConfig
from asd_policy.samplers.result import Stats

Observation = Mapping[str, Any]


def accelerate(
    policy: RolloutPolicy,
    sampler: str | SamplerConfig = "asd",
    *,
    engine: str = "auto",
    precision: str = "fp32",
    compile: bool = False,
    verbose: bool = True,
    **options: Any,
) -> AcceleratedPolicy:
    """The same policy with another sampler, on its own device.

    Its network is left as it is, and may be trained on: the next chunk is drawn with the weights of
    then.

    Args:
        policy: from ``FileUtils.policy_from_checkpoint``, of the algorithm "diffusion_policy".
        sampler, options: a name with options of ``SamplerConfig``, or a ``SamplerConfig``. "asd"
            samples actions of exactly the distribution of "ddpm", which is what robomimic samples
            from a DDPM checkpoint. A checkpoint that is configured for DDIM (η = 0) has no noise to
            couple: ``steps=…`` with "asd" or "ddpm" samples the DDPM that its network was
            trained for, in so many steps, which is a different distribution of actions than DDIM's;
            "ddim" keeps its DDIM, with its steps, ``set_alpha_to_one`` and ``steps_offset``.
        engine, precision, compile: as for ``DiffusionPolicy``.
        verbose: say in one line which weights and which chain are used.

    Raises:
        TypeError: no ``RolloutPolicy``.
        ValueError: another algorithm, or an unknown option.
        CheckpointError: a sampler that the checkpoint's chain does not allow, or a network that
            is no ``ConditionalUnet1D``.
    """
    if isinstance(policy, AcceleratedPolicy):
        policy = policy.wrapped
    if not isinstance(policy, RolloutPolicy):
        raise TypeError(f"expected a robomimic RolloutPolicy, got a {type(policy).__name__}")
    check_algorithm(policy.policy)
    config = SamplerConfig.named(sampler, **options)
    config = for_chain(config, policy.policy.algo_config)
    made = AcceleratedPolicy(policy, config, engine, precision, compile)
    if verbose:
        print(f"asd-policy: {made.description}")
    return made


@dataclass
class _Episode:
    """One environment's stream, queue of actions, and frames where none come stacked."""

    generator: torch.Generator
    frames: deque[dict[str, np.ndarray]] = field(default_factory=deque)
    queue: deque[np.ndarray] = field(default_factory=deque)


class AcceleratedPolicy(RolloutPolicy):
    """A ``RolloutPolicy`` whose chunks are drawn by an engine of this package, without gradients.

    Each environment of a batch has its own queue and random stream. Streams are seeded from
    PyTorch's global generator when an episode starts, or by ``start_episode(seeds=…)``.

    Args:
        wrapped: the policy as robomimic loaded it. sampler, engine, precision, compile: as for
            :func:`accelerate`.
    """

    def __init__(
        self,
        wrapped: RolloutPolicy,
        sampler: SamplerConfig,
        engine: str = "auto",
        precision: str = "fp32",
        compile: bool = False,
    ) -> None:
        super().__init__(wrapped.policy, wrapped.obs_normalization_stats)
        self.wrapped = wrapped
        self._options = sampler, engine, precision, compile
        self.action_normalization_stats = statistics_of(wrapped)
        algo = wrapped.policy
        horizon = algo.algo_config["horizon"]
        self.horizons = tuple(
            int(horizon[f"{k}_horizon"]) for k in ("observation", "action", "prediction")
        )
        self.shapes = {key: tuple(shape) for key, shape in algo.obs_shapes.items()}
        self.device = torch.device(algo.device)
        self.chunks = chunk_sampler(algo, sampler, engine, precision, compile)
        nets, self.uses_ema = rollout_networks(algo)
        self.encoder, self._network = nets["obs_encoder"], nets["noise_pred_net"]
        self._scaling = ObservationScale(self.shapes, wrapped.obs_normalization_stats or {})
        release_05 = "batched_ob" in inspect.signature(wrapped._prepare_observation).parameters
        pictures = any(len(shape) > 1 for shape in self.shapes.values())
        # 0.5 makes the network's input of pictures as they are drawn; 0.3's environments do.
        self.takes_raw_pictures = release_05 and pictures
        self._scale = ActionScale.of(
            self.action_normalization_stats, algo.global_config, self.device,
            torch.float64 if release_05 else torch.float32,
        )  # fmt: skip
        self._episodes: list[_Episode] = []
        self._stacked = False
        self._cost = _Cost()

    @property
    def last_chunks(self) -> list[ChunkStats | None]:
        """What the chunks of the last call cost, None where none was drawn."""
        return self._cost.by_row()

    @property
    def description(self) -> str:
        """Which weights, sampler and chain, in a line, and where robomimic's own are others."""
        weights = "averaged (EMA) weights" if self.uses_ema else "weights as trained (no EMA)"
        chain = describe(self.chunks.schedule, self.policy.algo_config)
        return f"{self.chunks.sampler.name} on a {chain.format(weights=weights)}"

    def __deepcopy__(self, memo: dict[int, Any]) -> AcceleratedPolicy:
        """Another policy with networks of its own, in the middle of the same episodes."""
        made = AcceleratedPolicy(copy.deepcopy(self.wrapped, memo), *self._options)
        memo[id(self)] = made
        made.chunks.calibration = copy.deepcopy(self.chunks.calibration, memo)
        made._episodes = copy.deepcopy(self._episodes, memo)
        made._stacked = self._stacked
        return made

    def __reduce__(self) -> NoReturn:
        raise CopyError(
            "an accelerated policy cannot be pickled, because robomimic's Config cannot be read "
            "back: load the checkpoint where the policy is wanted and accelerate it there "
            "(copy.deepcopy works)"
        )

    def __repr__(self) -> str:
        return f"AcceleratedPolicy({self.description})\n{self.policy!r}"

    def start_episode(self, seeds: int | Sequence[int] | None = None) -> None:
        """Forget everything queued.

        Args:
            seeds: of the random streams, one for each environment; by default as many are drawn
                from PyTorch's global generator as the first observation has rows.
        """
        super().start_episode()
        self.encoder.eval()
        if isinstance(seeds, (int, np.integer)):
            seeds = [int(seeds)]
        self._episodes = [self._episode(seed) for seed in seeds or ()]
        self._cost = _Cost()

    def reset_env(self, index: int, seed: int | None = None) -> None:
        """Start a new episode in one environment of a batch."""
        self._episodes[index] = self._episode(seed)

    def queued(self, index: int) -> int:
        """Actions that an environment can take before its next chunk must be drawn."""
        return len(self._episodes[index].queue)

    def coming(self, index: int) -> list[np.ndarray]:
        """The queued actions (action_dim,) of an environment, the next one first."""
        return list(self._episodes[index].queue)

    def _episode(self, seed: int | None) -> _Episode:
        number = int(torch.randint(2**63 - 1, (), device="cpu")) if seed is None else int(seed)
        return _Episode(torch.Generator(self.device).manual_seed(number))

    def __call__(
        self,
        ob: Observation,
        goal: Observation | None = None,
        batched_ob: bool = False,
        indices: Sequence[int] | None = None,
    ) -> np.ndarray:
        """The next action.

        Args:
            ob: key → (\\*shape), or (To, \\*shape) from an environment that stacks frames; with
                ``batched_ob`` a leading axis of environments. Arrays or tensors, on any device.
                Other keys than the policy's are ignored.
            goal: ignored, as robomimic's diffusion policy does; none of them sees goals.
            indices: which environments the rows are of (default: all of them, in order).

        Returns:
            (action_dim,), or (B, action_dim) with ``batched_ob``; float32, or float64 where the
            action statistics of robomimic 0.5 make it that.

        Raises:
            ValueError: missing keys or wrong shapes (one table), or another number of rows than of
                environments.
            NonFiniteError: a NaN or infinity in an observation or an action.
        """
        if self._stacked and not batched_ob and len(self._episodes) == 1:
            queue = self._episodes[0].queue
            if queue and self.shapes.keys() <= ob.keys():  # nothing else to do with the frames
                self._cost = _Cost(1)
                return queue.popleft()
        rows, stacked = self._check(ob, batched_ob)
        self._stacked = stacked
        batch = len(next(iter(rows.values())))
        episodes = self._batch(batch, indices)
        if not stacked:
            for i, episode in enumerate(episodes):
                self._remember(episode, {key: value[i] for key, value in rows.items()})
        self._cost = _Cost(batch)
        empty = [i for i, episode in enumerate(episodes) if not episode.queue]
        if empty:
            frames = (
                {k: v[empty] if len(empty) < batch else v for k, v in rows.items()}
                if stacked
                else {k: np.stack([_stack(episodes[i], k) for i in empty]) for k in self.shapes}
            )
            drawn = [episodes[i] for i in empty]
            actions, stats, seconds = self._draw(frames, drawn)
            for episode, chunk in zip(drawn, actions, strict=True):
                episode.queue.extend(chunk)
            self._cost = _Cost(batch, empty, stats, seconds)
        if not batched_ob:
            return episodes[0].queue.popleft()
        return np.stack([episode.queue.popleft() for episode in episodes])

    def _batch(self, batch: int, indices: Sequence[int] | None) -> list[_Episode]:
        if not self._episodes and indices is None:
            self._episodes = [self._episode(None) for _ in range(batch)]
        indices = range(len(self._episodes)) if indices is None else indices
        if len(indices) != batch:
            raise ValueError(
                f"expected one row for each of {len(indices)} environments, got {batch}; "
                "start_episode() begins with another number, indices= says which they are"
            )
        return [self._episodes[i] for i in indices]

    def _check(self, ob: Observation, batched: bool) -> tuple[dict[str, np.ndarray], bool]:
        """Rows (B, …) of each of the policy's keys, and whether they hold stacked frames."""
        rows = {k: _array(ob[k]) for k in self.shapes if k in ob}
        if not batched:
            rows = {key: value[None] for key, value in rows.items()}
        first = next(iter(self.shapes))
        stacked = first in rows and rows[first].ndim == len(self.shapes[first]) + 2
        lead = (len(rows[first]) if first in rows else 1, *([self.horizons[0]] * stacked))
        got = {k: v.shape for k, v in rows.items()}
        expected = {k: (*lead, *shape) for k, shape in self.shapes.items()}
        if got != expected:
            # Pictures come as (height, width, channels) where the policy converts them.
            expected |= {
                key: got[key]
                for key, shape in self.shapes.items()
                if len(shape) == 3
                and key in got
                and got[key][: len(lead)] == lead
                and len(got[key]) == len(lead) + 3
            }
            table = difference_table(expected, got)
            if table:
                raise ValueError(
                    f"these are not the observations that the policy expects:\n{table}"
                )
        return rows, stacked

    def _remember(self, episode: _Episode, row: dict[str, np.ndarray]) -> None:
        """Append a frame; the first of an episode fills the history."""
        episode.frames.append(row)
        while len(episode.frames) < self.horizons[0]:
            episode.frames.append(row)
        while len(episode.frames) > self.horizons[0]:
            episode.frames.popleft()

    @torch.inference_mode()
    @own_precision(networks_too=True)
    def _draw(
        self, frames: dict[str, np.ndarray], episodes: list[_Episode]
    ) -> tuple[np.ndarray, Stats, float]:
        """The executed actions (B, Ta, action_dim) of one chunk for each environment, what they
        cost, and seconds in all."""
        start = time.perf_counter()
        self._follow()
        cond = self.encode(self._prepare(frames))
        if not _finite(cond):
            bad = [k for k, v in frames.items() if not np.isfinite(v).all()]
            raise NonFiniteError(f"NaN or infinite observations: {', '.join(bad) or 'encoded'}")
        chunks, stats = self.chunks.draw(cond, [episode.generator for episode in episodes])
        first = self.horizons[0] - 1
        actions = self._scale.unnormalize(chunks[:, first : first + self.horizons[1]])
        if not _finite(actions):
            raise NonFiniteError("the sampler returned a NaN or infinite action")
        return actions.cpu().numpy(), stats, time.perf_counter() - start

    def _follow(self) -> None:
        """Take over networks that robomimic has put in the place of those that were accelerated;
        weights that changed are copied again by themselves."""
        nets, self.uses_ema = rollout_networks(self.policy)
        self.encoder = nets["obs_encoder"]
        if nets["noise_pred_net"] is not self._network:
            self._network = nets["noise_pred_net"]
            self.chunks = chunk_sampler(self.policy, *self._options)

    def encode(self, frames: Mapping[str, Tensor]) -> Tensor:
        """Prepared frames, key → (B, To, \\*shape), through the policy's encoder: (B, features)."""
        return encode(self.encoder, frames)

    def _prepare(self, frames: dict[str, np.ndarray]) -> dict[str, Tensor]:
        """Normalized float tensors on the policy's device, as robomimic's own release does it."""
        if self.takes_raw_pictures:
            prepared = self.wrapped._prepare_observation(dict(frames), batched_ob=True)
            return {key: prepared[key] for key in self.shapes}
        return self._scaling.apply(frames, self.device)


@dataclass
class _Cost:
    """What the last call cost: ``rows`` of ``batch`` had chunks drawn. Read by few, so the
    statistics are made when they are read."""

    batch: int = 0
    rows: Sequence[int] = ()
    stats: Stats | None = None
    seconds: float = 0.0

    def by_row(self) -> list[ChunkStats | None]:
        made: list[ChunkStats | None] = [None] * self.batch
        if self.stats is not None:
            for row, cost in zip(self.rows, chunk_stats(self.stats, self.seconds), strict=True):
                made[row] = cost
        return made


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)


def _finite(values: Tensor) -> bool:
    """Whether all are; one sum tells nearly always, and can overflow."""
    return math.isfinite(values.sum().item()) or bool(values.isfinite().all())


def _stack(episode: _Episode, key: str) -> np.ndarray:
    return np.stack([frame[key] for frame in episode.frames])


def rollout_networks(algo: Any) -> tuple[Any, bool]:
    """The modules that act (``obs_encoder``, ``noise_pred_net``), and whether they are averages."""
    average = getattr(algo, "ema", None)
    nets = algo.nets if average is None else average.averaged_model
    return nets["policy"], average is not None


def chunk_sampler(
    algo: Any,
    sampler: SamplerConfig,
    engine: str = "auto",
    precision: str = "fp32",
    compile: bool = False,
) -> ChunkSampler:
    """What draws chunks of an algorithm's actions, with copies of its network's weights, which are
    copied again where it is trained on.

    Raises:
        CheckpointError: its network is no ``ConditionalUnet1D``, or its weights are not finite.
        ValueError: as :class:`ChunkSampler`.
    """
    network = as_unet(rollout_networks(algo)[0]["noise_pred_net"])
    shape = int(algo.algo_config["horizon"]["prediction_horizon"]), int(algo.ac_dim)
    schedule = trained_schedule(algo.algo_config)
    return ChunkSampler(network, schedule, shape, sampler, algo.device, engine, precision, compile)


def encode(encoder: Any, frames: Mapping[str, Tensor]) -> Tensor:
    """Key → (B, To, \\*shape) frames → (B, To·features), the condition of a chunk."""
    batch = len(next(iter(frames.values())))
    return encoder(obs={key: value.flatten(0, 1) for key, value in frames.items()}).reshape(
        batch, -1
    )
