"""A trained diffusion policy of robomimic's, its chunks drawn by this package."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from robomimic.algo import RolloutPolicy

from asd_policy.errors import CopyError, InputError
from asd_policy.integrations.robomimic.actions import statistics_of
from asd_policy.integrations.robomimic.chain import check_algorithm, describe, for_chain
from asd_policy.integrations.robomimic.source import RobomimicSource, as_array
from asd_policy.policy.draws import ChunkStats
from asd_policy.policy.horizon import RecedingHorizon
from asd_policy.policy.observations import OneRow
from asd_policy.sampler import Sampler
from asd_policy.samplers.config import SamplerConfig

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
    then. What is slow at first is done here (compile, capture, time the network, teach drafts by
    four throw-away chunks), so that afterwards a seed gives the same chunks.

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
    config = SamplerConfig.named(sampler, asked_of=accelerate, **options)
    config = for_chain(config, policy.policy.algo_config)
    made = AcceleratedPolicy(policy, config, engine, precision, compile)
    if verbose:
        print(f"asd-policy: {made.description}")
    return made


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
        self.source = RobomimicSource(wrapped, *self._options)
        self.loop = RecedingHorizon(self.source)

    @property
    def chunks(self) -> Sampler:
        """What draws the chunks."""
        return self.source.sampler

    @property
    def horizons(self) -> tuple[int, int, int]:
        """(To, Ta, Tp)."""
        return self.source.horizons

    @property
    def last_chunks(self) -> list[ChunkStats | None]:
        """What the chunks of the last call cost, None where none was drawn."""
        return self.loop.last_chunks

    @property
    def description(self) -> str:
        """Which weights, sampler and chain, in a line, and where robomimic's own are others."""
        kinds = "weights as trained (no EMA)", "averaged (EMA) weights"
        weights = kinds[self.source.uses_ema]
        chain = describe(self.chunks.schedule, self.policy.algo_config)
        return f"{self.chunks.config.name} on a {chain.format(weights=weights)}"

    def __deepcopy__(self, memo: dict[int, Any]) -> AcceleratedPolicy:
        """Another policy with networks of its own, in the middle of the same episodes."""
        made = AcceleratedPolicy(copy.deepcopy(self.wrapped, memo), *self._options)
        memo[id(self)] = made
        made.chunks.calibration = copy.deepcopy(self.chunks.calibration, memo)
        made.loop.environments = copy.deepcopy(self.loop.environments, memo)
        made.source.stacked = self.source.stacked
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
        self.source.encoder.eval()
        self.loop.reset(() if seeds is None else seeds)

    def reset_env(self, index: int, seed: int | None = None) -> None:
        """Start a new episode in one environment of a batch."""
        self.loop.reset_env(index, seed)

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
        environments, shapes = self.loop.environments, self.source.shapes
        alone = self.source.stacked and not batched_ob and len(environments) == 1
        if alone and environments[0].queue and shapes.keys() <= ob.keys():
            return self.loop.next(0)  # nothing else is to be done with the frames
        rows = {k: as_array(ob[k]) for k in shapes if k in ob}
        if not batched_ob:
            rows = OneRow({key: value[None] for key, value in rows.items()})
        batch = len(next(iter(rows.values()))) if rows else 1
        frames = self.source.frames(rows, batch)
        indices = self._which(batch, indices)
        actions = self.loop.act_on(frames, indices)
        return actions if batched_ob else actions[0]

    def _which(self, batch: int, indices: Sequence[int] | None) -> Sequence[int]:
        if not self.loop.environments and indices is None:
            self.loop.reset([None] * batch)
        indices = range(len(self.loop.environments)) if indices is None else indices
        if len(indices) != batch:
            raise InputError(
                f"expected one row for each of {len(indices)} environments, got {batch}; "
                "start_episode() begins with another number, indices= says which they are"
            )
        return indices
