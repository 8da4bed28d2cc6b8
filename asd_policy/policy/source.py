"""Chunks of a checkpoint's actions, for what a policy has observed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from asd_policy.ambient import own_precision
from asd_policy.denoiser import PreparedNetwork
from asd_policy.errors import InputError, NonFiniteError
from asd_policy.policy.checkpoint import Checkpoint
from asd_policy.policy.chunks import chunk_sampler
from asd_policy.policy.horizon import Chunks, Observation
from asd_policy.policy.inpaint import AsItIs, Inpainted
from asd_policy.policy.observations import check_shapes, numbers
from asd_policy.policy.sampled import SampledSource
from asd_policy.sampler import Sampler
from asd_policy.samplers.calibration import Calibration
from asd_policy.samplers.config import SamplerConfig
from asd_policy.samplers.result import Stats
from asd_policy.samplers.table import Plan


class CheckpointSource(SampledSource):
    """Chunks of a trained policy, for histories of low-dimensional observations.

    Args:
        checkpoint, config, device, engine, precision, compile, threads: as for
            :class:`DiffusionPolicy`.
    """

    conditions = True

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: SamplerConfig,
        device: torch.device,
        engine: str = "auto",
        precision: str = "fp32",
        compile: bool = False,
        threads: int | None = None,
    ) -> None:
        _check_float32(checkpoint.network)
        self.config, self.device = checkpoint.config, device
        self.network = checkpoint.network.to(device)  # else as it is: it may be training
        self._observation_normalizer = checkpoint.observation_normalizer.to(device)
        self._action_normalizer = checkpoint.action_normalizer.to(device)
        self.horizons = self.config.horizons
        self._engine, self._trained = engine, checkpoint.schedule
        self._after: Sampler | None = None
        self.sampler = chunk_sampler(
            self.network,
            checkpoint.schedule,
            self.config.chunk_shape,
            config,
            device,
            engine,
            precision,
            compile,
            checkpoint.card.get("calibration"),
            threads,
        )

    def expect(self, batch: int) -> None:
        super().expect(batch)
        if self._after is not None:
            self._after.expect(batch)

    def frames(self, observations: Observation, batch: int) -> Sequence[Sequence[np.ndarray]]:
        """(Do,) float32 rows, keys in the policy's order."""
        expected = {k: (batch, dim) for k, dim in self.config.observation_keys.items()}
        seen = [key for key in expected if key in observations]
        arrays = {key: numbers(key, observations[key], np.float32) for key in seen}
        check_shapes(observations, expected, {key: value.shape for key, value in arrays.items()})
        return [[row] for row in np.concatenate([arrays[key] for key in expected], axis=1)]

    def draw(
        self, histories: Sequence[Sequence[np.ndarray]], streams: Sequence[torch.Generator]
    ) -> Chunks:
        stacked = np.stack([np.stack(history) for history in histories])
        plan = self.sampler.plan(len(stacked))
        actions, stats = self.sample(stacked, streams, plan)
        return Chunks(actions, stats, stacked, None if plan.slopes is None else plan.slopes.numpy())

    def draw_after(
        self,
        histories: Sequence[Sequence[np.ndarray]],
        streams: Sequence[torch.Generator],
        committed: Sequence[np.ndarray],
    ) -> Chunks:
        stacked = np.stack([np.stack(history) for history in histories])
        known, which = self._known(committed)
        sampler, window = self._sampler_after(), self.sampler.plan(len(stacked)).window
        with torch.inference_mode(), own_precision(networks_too=True):
            history = torch.from_numpy(stacked).to(self.device)
            cond = self._observation_normalizer.normalize(history).flatten(1)
            cond = torch.cat([cond, known.flatten(1).to(cond), which.flatten(1).to(cond)], 1)
            plan = replace(sampler.plan(len(stacked)), window=window)  # the other chain's
            chunks, stats = sampler.draw(sampler.noise(streams), cond, plan)
            actions = self._action_normalizer.unnormalize(chunks).cpu().numpy()
        if not np.isfinite(actions).all():
            raise NonFiniteError("the sampler returned a NaN or infinite action")
        for chunk, given in zip(actions, committed, strict=True):  # the chain may have clipped it
            chunk[self.horizons[0] - 1 :][: len(given)] = given
        return Chunks(actions, stats)

    def close(self) -> None:
        super().close()
        if self._after is not None:
            self._after.close()

    def _known(self, committed: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """(B, Tp, action_dim) normalized values, and 1 where they are known."""
        (to, _, tp), dim = self.horizons, self.config.action_dim
        raw = np.zeros((len(committed), tp, dim), np.float32)
        which = torch.zeros(raw.shape, device="cpu")
        for row, given in enumerate(committed):
            if numbers("committed", given).dtype == bool:
                raise InputError("committed actions must be numbers; got a mask")
            actions = numbers("committed", given, np.float32)
            if actions.ndim != 2 or actions.shape[1] != dim or len(actions) > tp - to + 1:
                raise InputError(
                    f"committed actions must be (n, {dim}), n up to {tp - to + 1}; "
                    f"got {actions.shape}"
                )
            raw[row, to - 1 : to - 1 + len(actions)] = actions
            which[row, to - 1 : to - 1 + len(actions)] = 1
        with torch.inference_mode():
            known = self._action_normalizer.normalize(torch.from_numpy(raw).to(self.device))
        return known, which.to(known)

    def _sampler_after(self) -> Sampler:
        """Of the inpainted chain: an engine of its own, and the window of the other."""
        if self._after is None:
            first, network, engine = self.sampler, self.sampler.engine.source, self._engine
            if engine == "openvino":  # which compiles networks, and not what goes on around them
                network, engine = self.sampler.engine.network, "eager"
            if not isinstance(network, PreparedNetwork):
                network = AsItIs(network, first.schedule.timesteps.to(self.device))
            inpainted = Inpainted(network, first.schedule, first.shape, self.device)
            self._after = Sampler(
                inpainted,
                self._trained,
                first.shape,
                first.config,
                engine=engine,
                device=self.device,
                calibration=Calibration(first.calibration.learned, frozen=True),
                threads=first.threads,
            )
            self._after.expect(self.robots)
        return self._after

    def sample(
        self,
        histories: np.ndarray,
        generators: Sequence[torch.Generator],
        plan: Plan | None = None,
    ) -> tuple[np.ndarray, Stats]:
        """Chunks for given histories, without environments.

        Args:
            histories: (B, To, Do) float32, the newest last. generators: B random streams.
            plan: to draw with, in place of the policy's own (to draw a chunk again as it once was).

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
            noise = self.sampler.noise(generators)
            chunks, stats = self.sampler.draw(noise, cond.flatten(1), plan)
            actions = self._action_normalizer.unnormalize(chunks).cpu().numpy()
        if not np.isfinite(actions).all():
            raise NonFiniteError("the sampler returned a NaN or infinite action")
        return actions, stats


def _check_float32(network: nn.Module) -> None:
    for name, weight in network.named_parameters():
        if weight.dtype != torch.float32:
            raise InputError(
                f"a policy's weights must be float32, got {weight.dtype} ({name}); expected "
                "network.float() (it is run in bfloat16 with precision='bf16')"
            )
