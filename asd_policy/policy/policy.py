"""A diffusion policy in a control loop: observations in, one action out, a chunk at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asd_policy.errors import CheckpointError, NonFiniteError
from asd_policy.policy.checkpoint import Checkpoint, difference_table, load_checkpoint
from asd_policy.policy.chunks import ChunkSampler
from asd_policy.samplers.calibration import Calibration
from asd_policy.samplers.config import SamplerConfig
from asd_policy.samplers.result import Stats

Observation = Mapping[str, "np.ndarray[Any, Any]"]


@dataclass(frozen=True)
class ChunkStats:
    """What one environment's chunk cost.

    Attributes:
        latency_s: wall-clock seconds from observation to actions, shared by the batch.
        batch: chunks drawn together. sampler, window: how (window 1: sequentially).
        calls, evaluations, rejections: network calls and rows, rejected drafts of this chain.
        accepted, decided: (K,) by step.
        draft_s, network_s, verify_s, other_s: parts of ``latency_s``.
    """

    latency_s: float
    batch: int
    sampler: str
    window: int
    calls: int
    evaluations: int
    rejections: int
    accepted: np.ndarray
    decided: np.ndarray
    draft_s: float
    network_s: float
    verify_s: float
    other_s: float


@dataclass
class _Environment:
    """One environment's history, queue of actions and random stream."""

    generator: torch.Generator
    history: deque[np.ndarray] = field(default_factory=deque)
    queue: deque[np.ndarray] = field(default_factory=deque)


class DiffusionPolicy:
    """Receding-horizon control with a diffusion model of action chunks (Chi et al., 2023).

    To observations condition a chunk of Tp actions, of which Ta are executed, from the one of the
    current time step on. Each environment has its own history, queue and random stream, so that
    its actions depend neither on how many others are stepped beside it nor on their order.

    Args:
        checkpoint: a trained policy. sampler: how chunks are drawn. device: where.
        engine: what draws them, one of ``asd_policy.engine.ENGINES``.
        precision: of the network: "fp32", "tf32" (on CUDA) or "bf16".
        compile: run the network through ``torch.compile``, which takes its time at first.

    Raises:
        ValueError: a sampler that this policy's chain does not allow, or an unknown option.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        sampler: SamplerConfig | None = None,
        device: str | torch.device = "cpu",
        engine: str = "auto",
        precision: str = "fp32",
        compile: bool = False,
    ) -> None:
        self.sampler = sampler or SamplerConfig()
        self.config, self.card = checkpoint.config, checkpoint.card
        self.device = torch.device(device)
        self.network = checkpoint.network.to(self.device).eval().requires_grad_(False)
        self._observation_normalizer = checkpoint.observation_normalizer.to(self.device)
        self._action_normalizer = checkpoint.action_normalizer.to(self.device)
        self._sampler = ChunkSampler(
            self.network,
            checkpoint.schedule,
            self.config.chunk_shape,
            self.sampler,
            self.device,
            engine,
            precision,
            compile,
            self._initial_calibration(),
        )
        self.schedule, self.engine = self._sampler.schedule, self._sampler.engine
        self.calibration = self._sampler.calibration
        self.last_chunks: list[ChunkStats | None] = []
        self._environments: list[_Environment] = []
        self.reset()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device = "cpu",
        sampler: str | SamplerConfig = "asd",
        engine: str = "auto",
        precision: str = "fp32",
        compile: bool = False,
        **options: Any,
    ) -> DiffusionPolicy:
        """Load a checkpoint folder.

        Args:
            folder: with ``model.safetensors`` and ``card.json``.
            device: "cpu", "cuda", …
            engine, precision, compile: as for the class.
            sampler: a name with ``options`` of ``SamplerConfig``, or a ``SamplerConfig``.

        Raises:
            CheckpointError: a folder that is missing, damaged or no checkpoint.
            ValueError: an unknown sampler or option value.
        """
        config = (
            sampler if isinstance(sampler, SamplerConfig) else SamplerConfig(sampler, **options)
        )
        return cls(load_checkpoint(folder), config, device, engine, precision, compile)

    @property
    def observation_keys(self) -> dict[str, int]:
        """Observation key → dimension, in order."""
        return dict(self.config.observation_keys)

    @property
    def horizons(self) -> tuple[int, int, int]:
        """(To, Ta, Tp)."""
        return self.config.horizons

    def check_observation_space(self, keys: Mapping[str, int]) -> None:
        """Raise a CheckpointError with one table unless ``keys`` (key → dim) are the policy's."""
        expected = {k: (dim,) for k, dim in self.config.observation_keys.items()}
        table = difference_table(expected, {k: (dim,) for k, dim in keys.items()})
        if table:
            raise CheckpointError(f"the policy was made for other observations:\n{table}")

    def reset(self, seeds: int | Sequence[int | None] | None = None) -> None:
        """Forget everything observed and queued.

        Args:
            seeds: one seed for each environment (their number sets how many there are); one int or
                None for a single environment. None draws a seed.
        """
        if seeds is None or isinstance(seeds, (int, np.integer)):
            seeds = [seeds]
        self._environments = [_Environment(self._stream(seed)) for seed in seeds]
        self.last_chunks = [None] * len(self._environments)

    def reset_env(self, index: int, seed: int | None = None) -> None:
        """Start a new episode in one environment."""
        self._environments[index] = _Environment(self._stream(seed))

    def queued(self, index: int) -> int:
        """How many actions of one environment are drawn and not yet taken: at 0, its next needs a
        chunk. Environments that need one together have it drawn in one batch."""
        return len(self._environments[index].queue)

    def coming(self, index: int) -> list[np.ndarray]:
        """The queued actions (action_dim,) of one environment, the next one first."""
        return list(self._environments[index].queue)

    def _stream(self, seed: int | None) -> torch.Generator:
        """On the policy's device: noise is drawn where it is used."""
        generator = torch.Generator(self.device)
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(int(seed))
        return generator

    def close(self) -> None:
        """Release what the engine keeps on its device. The policy can still be used."""
        self.engine.close()

    def act(self, observation: Observation) -> np.ndarray:
        """The action of a single environment: key → (dim,) observation to (action_dim,) float32.

        Raises:
            ValueError: observation keys or shapes that are not the policy's, or more environments
                than one (use :meth:`act_batch`).
            NonFiniteError: a NaN or infinity in the observation, network output or action.
        """
        if len(self._environments) != 1:
            raise ValueError(
                f"act() is for one environment, and this policy was reset for "
                f"{len(self._environments)}; use act_batch()"
            )
        return self.act_batch({k: np.asarray(v)[None] for k, v in observation.items()})[0]

    def act_batch(
        self, observations: Observation, indices: Sequence[int] | None = None
    ) -> np.ndarray:
        """Actions of many environments: key → (B, dim) observations to (B, action_dim) float32.

        Args:
            observations: one row for each environment.
            indices: which environments the rows belong to (default: all, in order).

        Raises:
            ValueError, NonFiniteError: as :meth:`act`; nothing is drawn then.
        """
        indices = range(len(self._environments)) if indices is None else indices
        rows = self._check(observations, len(indices))
        environments = [self._environments[i] for i in indices]
        for environment, row in zip(environments, rows, strict=True):
            self._observe(environment, row)
        self.last_chunks = [None] * len(environments)
        empty = [i for i, environment in enumerate(environments) if not environment.queue]
        if empty:
            chunks, stats = self._draw([environments[i] for i in empty])
            first = self.config.obs_horizon - 1
            for i, chunk, cost in zip(empty, chunks, stats, strict=True):
                environments[i].queue.extend(chunk[first : first + self.config.action_horizon])
                self.last_chunks[i] = cost
        return np.stack([environment.queue.popleft() for environment in environments])

    def _check(self, observations: Observation, batch: int) -> np.ndarray:
        """(B, Do) float32 rows, keys in the policy's order."""
        with np.errstate(over="ignore"):  # found below, as an infinity
            arrays = {k: np.asarray(v, dtype=np.float32) for k, v in observations.items()}
        expected = {k: (batch, dim) for k, dim in self.config.observation_keys.items()}
        table = difference_table(expected, {k: v.shape for k, v in arrays.items() if k in expected})
        if table:
            raise ValueError(f"these are not the observations that the policy expects:\n{table}")
        for key in expected:
            if not np.isfinite(arrays[key]).all():
                raise NonFiniteError(f"observation {key!r} holds a NaN or infinite value")
        return np.concatenate([arrays[key] for key in expected], axis=1)

    def _observe(self, environment: _Environment, row: np.ndarray) -> None:
        """Append to the history; the first observation of an episode fills it."""
        history, length = environment.history, self.config.obs_horizon
        history.append(row)
        while len(history) < length:
            history.append(row)
        while len(history) > length:
            history.popleft()

    def _draw(self, environments: list[_Environment]) -> tuple[np.ndarray, list[ChunkStats]]:
        """One chunk (Tp, action_dim) for each environment, drawn in one batch."""
        start = time.perf_counter()
        history = np.stack([np.stack(environment.history) for environment in environments])
        with torch.inference_mode():
            cond = self._observation_normalizer.normalize(torch.from_numpy(history).to(self.device))
            generators = [environment.generator for environment in environments]
            chunks, stats = self._sampler.draw(cond.flatten(1), generators)
            actions = self._action_normalizer.unnormalize(chunks).cpu().numpy()
        if not np.isfinite(actions).all():
            raise NonFiniteError("the sampler returned a NaN or infinite action")
        return actions, chunk_stats(stats, time.perf_counter() - start)

    def _initial_calibration(self) -> Calibration:
        """The checkpoint's, where it was made with this sampler; else an empty one.

        The checkpoint's is frozen: an episode then depends on its seed and window alone.
        """
        stored = self.card.get("calibration")
        if not stored or self.sampler != SamplerConfig(window=self.sampler.window):
            return Calibration()
        calibration = Calibration.from_dict(stored)
        calibration.frozen = True
        return calibration


def chunk_stats(stats: Stats, latency_s: float) -> list[ChunkStats]:
    """Of each chain of a run."""
    seconds = stats.seconds
    other = latency_s - seconds["draft"] - seconds["network"] - seconds["verify"]
    return [
        ChunkStats(
            latency_s,
            len(stats.calls),
            stats.sampler,
            stats.window,
            int(stats.calls[i]),
            int(stats.evaluations[i]),
            int(stats.rejections[i]),
            stats.accepted[i].numpy(),
            stats.decided[i].numpy(),
            seconds["draft"],
            seconds["network"],
            seconds["verify"],
            other,
        )
        for i in range(len(stats.calls))
    ]
