"""A diffusion policy in a control loop: observations in, one action out, a chunk at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asd_policy.ambient import own_precision
from asd_policy.errors import CheckpointError, NonFiniteError
from asd_policy.policy.checkpoint import Checkpoint, difference_table, load_checkpoint
from asd_policy.policy.chunks import ChunkSampler
from asd_policy.policy.draws import ChunkStats, Draw, chunk_stats
from asd_policy.samplers.calibration import Calibration
from asd_policy.samplers.config import SamplerConfig
from asd_policy.samplers.result import Stats, draw_noise

Observation = Mapping[str, "np.ndarray[Any, Any]"]


@dataclass
class _Environment:
    """One environment's history, queue of actions and random stream."""

    seed: int | None
    generator: torch.Generator
    drawn: int = 0
    history: deque[np.ndarray] = field(default_factory=deque)
    queue: deque[np.ndarray] = field(default_factory=deque)


def _tell_nobody(draw: Draw) -> None:
    """What is done with a draw that nobody asked to hear of."""


class DiffusionPolicy:
    """Receding-horizon control with a diffusion model of action chunks (Chi et al., 2023).

    To observations condition a chunk of Tp actions, of which Ta are executed, from the one of the
    current time step on. Each environment has its own history, queue and random stream, so that
    its actions depend neither on how many others are stepped beside it nor on their order.

    Args:
        checkpoint: a policy, whose network is moved to the device and otherwise left as it is: it
            may be trained on, and the next chunk is drawn with the weights of then.
        sampler: how chunks are drawn. device: where.
        engine: what draws them, one of ``asd_policy.engine.ENGINES``.
        precision: of the network: "fp32", "tf32" (on CUDA) or "bf16".
        compile: run the network through ``torch.compile``, which takes its time at first.
        threads: CPU threads that chunks are drawn with; None chooses by the network's size: one
            for those that a second thread makes hardly faster, torch's own number for large ones.

    A copy (``copy.deepcopy``, ``pickle``) is in the middle of the same episodes, will draw the same
    numbers, and has a network, an engine and a calibration of its own; ``on_draw`` stays behind.

    With ``window="auto"`` the network is timed when the first policy of its kind is made on a
    machine, and what was found is kept in the user's cache folder. Nothing is timed later on: the
    window depends on that, and on the acceptance stored with the checkpoint.

    Attributes:
        last_chunks: what the chunks of the last call cost, None where none was drawn.
        on_draw: told of every batch of chunks, after it was drawn and timed (a flight recorder).

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
        threads: int | None = None,
    ) -> None:
        self.sampler = sampler or SamplerConfig()
        self.config, self.card = checkpoint.config, checkpoint.card
        self.device = torch.device(device)
        self.network = checkpoint.network.to(self.device)  # else as it is: it may be training
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
            threads,
        )
        self.schedule, self.engine = self._sampler.schedule, self._sampler.engine
        self.calibration = self._sampler.calibration
        self.last_chunks: list[ChunkStats | None] = []
        self.on_draw: Callable[[Draw], None] = _tell_nobody
        self._environments: list[_Environment] = []
        self.reset()

    def __getstate__(self) -> dict[str, Any]:
        """Without what listens: a flight recorder records one policy."""
        return vars(self) | {"on_draw": _tell_nobody}

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
        threads: int | None = None,
        **options: Any,
    ) -> DiffusionPolicy:
        """Load a checkpoint.

        Args:
            folder: with ``model.safetensors`` and ``card.json``; or the name of a policy that
                ships with this package ("lift", "can", "square", "tool_hang", "transport").
            device: "cpu", "cuda", …
            engine, precision, compile, threads: as for the class.
            sampler: a name with ``options`` of ``SamplerConfig``, or a ``SamplerConfig``. All
                names of the command line are known ("asd-paper", "ddim-16" …).

        Raises:
            CheckpointError: a folder that is missing, damaged or no checkpoint.
            ValueError: an unknown sampler or option value.
        """
        config = SamplerConfig.named(sampler, **options)
        return cls(load_checkpoint(folder), config, device, engine, precision, compile, threads)

    @property
    def observation_keys(self) -> dict[str, int]:
        """Observation key → dimension, in order."""
        return dict(self.config.observation_keys)

    @property
    def action_dim(self) -> int:
        """Numbers in an action."""
        return self.config.action_dim

    @property
    def parameters(self) -> int:
        """Numbers in the network."""
        return sum(p.numel() for p in self.network.parameters())

    @property
    def threads(self) -> int:
        """CPU threads that chunks are drawn with."""
        return self._sampler.threads

    @property
    def window(self) -> int | None:
        """θ of the next chunks (1: sequentially); None of a sampler without a window."""
        return self._sampler.window

    def measure(self) -> None:
        """Time the network on this machine again, for ``window="auto"``, and keep the result."""
        self._sampler.measure()

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
        self._environments = [_Environment(seed, self.stream(seed)) for seed in seeds]
        self._sampler.expect(len(self._environments))
        self.last_chunks = [None] * len(self._environments)

    def reset_env(self, index: int, seed: int | None = None) -> None:
        """Start a new episode in one environment."""
        self._environments[index] = _Environment(seed, self.stream(seed))

    def queued(self, index: int) -> int:
        """How many actions of one environment are drawn and not yet taken: at 0, its next needs a
        chunk. Environments that need one together have it drawn in one batch."""
        return len(self._environments[index].queue)

    def coming(self, index: int) -> list[np.ndarray]:
        """The queued actions (action_dim,) of one environment, the next one first."""
        return list(self._environments[index].queue)

    def stream(self, seed: int | None, drawn: int = 0) -> torch.Generator:
        """The random stream of an environment with this seed (None draws one), after ``drawn``
        chunks. On the policy's device: noise is drawn where it is used."""
        generator = torch.Generator(self.device)
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(int(seed))
        for _ in range(drawn):
            draw_noise([generator], self.schedule.num_steps, self.engine.like)
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
        self.observe(observations, indices)
        environments = [self._environments[i] for i in indices]
        rows = [row for row, environment in enumerate(environments) if not environment.queue]
        costs: list[ChunkStats | None] = [None] * len(environments)
        if rows:
            for row, actions in zip(rows, self.predict([indices[i] for i in rows]), strict=True):
                environments[row].queue.extend(actions[: self.config.action_horizon])
            for row, cost in zip(rows, self.last_chunks, strict=True):
                costs[row] = cost
        self.last_chunks = costs
        return np.stack([environment.queue.popleft() for environment in environments])

    def observe(self, observations: Observation, indices: Sequence[int] | None = None) -> None:
        """Take in one observation of each environment, and draw nothing.

        Args, errors: as for :meth:`act_batch`, which begins with this.
        """
        indices = range(len(self._environments)) if indices is None else indices
        for index, row in zip(indices, self._check(observations, len(indices)), strict=True):
            self._observe(self._environments[index], row)

    def predict(self, indices: Sequence[int] | None = None) -> np.ndarray:
        """Draw a chunk for each environment from what it has observed so far; queues are left.

        Returns:
            (B, Tp − To + 1, action_dim) float32 actions, the first for the time of the latest
            observation. :meth:`act_batch` executes Ta of them; a loop in which a chunk comes late
            may want the others.

        Raises:
            NonFiniteError: a NaN or infinity in the network's output or an action.
        """
        indices = range(len(self._environments)) if indices is None else indices
        chunks, costs = self._draw([self._environments[i] for i in indices])
        self.last_chunks = list(costs)
        return chunks[:, self.config.obs_horizon - 1 :]

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
        histories = np.stack([np.stack(environment.history) for environment in environments])
        actions, stats = self.sample(histories, [e.generator for e in environments])
        costs = chunk_stats(stats, time.perf_counter() - start)
        slopes = self._sampler.last_slopes
        self.on_draw(
            Draw(
                [environment.seed for environment in environments],
                [environment.drawn for environment in environments],
                histories,
                None if slopes is None else slopes.numpy(),
                actions,
                costs,
            )
        )
        for environment in environments:
            environment.drawn += 1
        return actions, costs

    def sample(
        self,
        histories: np.ndarray,
        generators: Sequence[torch.Generator],
        calibration: Calibration | None = None,
    ) -> tuple[np.ndarray, Stats]:
        """Chunks for given histories: what :meth:`act_batch` draws, without its environments.

        Args:
            histories: (B, To, Do) float32, the newest last. generators: B random streams.
            calibration: in place of the policy's own (to draw a chunk again as it once was).

        Returns:
            (B, Tp, action_dim) float32 actions, and what they cost.

        Raises:
            NonFiniteError: a NaN or infinity in a history, the network's output or an action.
        """
        if not np.isfinite(histories).all():
            raise NonFiniteError("an observation holds a NaN or infinite value")
        with torch.inference_mode(), own_precision(networks_too=True):
            history = torch.from_numpy(histories).to(self.device)
            cond = self._observation_normalizer.normalize(history)
            chunks, stats = self._sampler.draw(cond.flatten(1), generators, calibration)
            actions = self._action_normalizer.unnormalize(chunks).cpu().numpy()
        if not np.isfinite(actions).all():
            raise NonFiniteError("the sampler returned a NaN or infinite action")
        return actions, stats

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
