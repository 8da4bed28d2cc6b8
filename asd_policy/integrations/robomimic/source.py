"""Chunks of a robomimic policy's actions, drawn by this package."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from robomimic.algo import RolloutPolicy
from torch import Tensor

from asd_policy.ambient import own_precision
from asd_policy.errors import InputError, NonFiniteError
from asd_policy.integrations.robomimic.actions import ActionScale, statistics_of
from asd_policy.integrations.robomimic.chain import as_unet
from asd_policy.integrations.robomimic.observations import ObservationScale
from asd_policy.integrations.robomimic_format import trained_schedule
from asd_policy.policy import chunks as made_ready
from asd_policy.policy.horizon import Chunks, Observation
from asd_policy.policy.observations import check_shapes, numbers
from asd_policy.policy.sampled import SampledSource
from asd_policy.sampler import Sampler
from asd_policy.samplers.config import SamplerConfig


class RobomimicSource(SampledSource):
    """Chunks of a ``RolloutPolicy``, with copies of its weights, which are copied again where it is
    trained on.

    Args:
        wrapped: the policy as robomimic loaded it. config, engine, precision, compile: as for
            ``accelerate``.

    Attributes:
        sampler: of the chunks. stacked: whether the last observations came as To frames each.
        pictures: those that come as this package's environments give them, uint8; none under
            ``accelerate``, whose environments are robomimic's.
    """

    def __init__(
        self,
        wrapped: RolloutPolicy,
        config: SamplerConfig,
        engine: str = "auto",
        precision: str = "fp32",
        compile: bool = False,
    ) -> None:
        self.wrapped, algo = wrapped, wrapped.policy
        horizon = algo.algo_config["horizon"]
        to, ta, tp = (int(horizon[f"{k}_horizon"]) for k in ("observation", "action", "prediction"))
        self.horizons = to, ta, tp
        self.shapes = {key: tuple(shape) for key, shape in algo.obs_shapes.items()}
        self.device, self.stacked = torch.device(algo.device), False
        self._options = config, engine, precision, compile
        self.sampler = chunk_sampler(algo, *self._options)
        nets, self.uses_ema = rollout_networks(algo)
        self.encoder, self._network = nets["obs_encoder"], nets["noise_pred_net"]
        self._scaling = ObservationScale(self.shapes, wrapped.obs_normalization_stats or {})
        release_05 = "batched_ob" in inspect.signature(wrapped._prepare_observation).parameters
        pictures = any(len(shape) > 1 for shape in self.shapes.values())
        # 0.5 makes the network's input of pictures as they are drawn; 0.3's environments do.
        self.takes_raw_pictures = release_05 and pictures
        self._given = {  # as observations come
            key: (*shape[1:], shape[0]) if self.takes_raw_pictures and len(shape) == 3 else shape
            for key, shape in self.shapes.items()
        }
        self._scale = ActionScale.of(
            statistics_of(wrapped), algo.global_config, self.device,
            torch.float64 if release_05 else torch.float32,
        )  # fmt: skip

    def stream(self, seed: int | None, drawn: int = 0) -> torch.Generator:
        """Without a seed, seeded from PyTorch's global generator, as robomimic's own noise is."""
        number = int(torch.randint(2**63 - 1, (), device="cpu")) if seed is None else seed
        return super().stream(number, drawn)

    def frames(
        self, observations: Observation, batch: int
    ) -> Sequence[Sequence[dict[str, np.ndarray]]]:
        """(\\*shape) of each of the policy's keys, or (To, \\*shape) where they come stacked."""
        seen = [key for key in self.shapes if key in observations]
        rows = {key: numbers(key, as_array(observations[key])) for key in seen}
        for key in rows.keys() & self.pictures if not self.takes_raw_pictures else ():
            rows[key] = _as_robomimic_03(rows[key])
        first = next(iter(self.shapes))
        stacked = first in rows and rows[first].ndim == len(self.shapes[first]) + 2
        lead = (batch, *([self.horizons[0]] * stacked))
        expected = {key: (*lead, *shape) for key, shape in self._given.items()}
        check_shapes(observations, expected, {key: value.shape for key, value in rows.items()})
        self.stacked = stacked
        # Copies: robots use their buffers again, and histories keep these.
        return [[{key: np.array(v[i]) for key, v in rows.items()}] for i in range(batch)]

    @torch.inference_mode()
    @own_precision(networks_too=True)
    def draw(
        self,
        histories: Sequence[Sequence[dict[str, np.ndarray]]],
        streams: Sequence[torch.Generator],
    ) -> Chunks:
        # Layouts in memory are kept: convolutions differ by them in their last bits.
        one, *others = [self._whole(history) for history in histories]
        frames = {
            key: np.stack([value, *(each[key] for each in others)]) if others else value[None]
            for key, value in one.items()
        }
        self._follow()
        cond = self.encode(self._prepare(frames))
        if not _finite(cond):
            bad = [k for k, v in frames.items() if not np.isfinite(v).all()]
            raise NonFiniteError(f"NaN or infinite observations: {', '.join(bad) or 'encoded'}")
        chunks, stats = self.sampler.draw(self.sampler.noise(streams), cond)
        actions = self._scale.unnormalize(chunks)
        if not _finite(actions):
            raise NonFiniteError("the sampler returned a NaN or infinite action")
        return Chunks(actions.cpu().numpy(), stats)

    def _follow(self) -> None:
        """Take over networks that robomimic has put in the place of those that were accelerated;
        weights that changed are copied again by themselves."""
        algo = self.wrapped.policy
        nets, self.uses_ema = rollout_networks(algo)
        self.encoder = nets["obs_encoder"]
        if nets["noise_pred_net"] is not self._network:
            self._network, before = nets["noise_pred_net"], self.sampler
            self.sampler = chunk_sampler(algo, *self._options)
            self.sampler.threads = before.threads
            self.sampler.expect(self.robots)

    def _whole(self, history: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """(To, \\*shape) of each key: the newest as it is, if it came stacked."""
        first, newest = next(iter(self.shapes)), history[-1]
        if newest[first].ndim > len(self.shapes[first]):
            return newest
        if len({frame[first].ndim for frame in history}) > 1:
            raise InputError(
                "stacked and single observations in one episode; start_episode() first"
            )
        return {key: np.stack([frame[key] for frame in history]) for key in self.shapes}

    def encode(self, frames: Mapping[str, Tensor]) -> Tensor:
        """Prepared frames, key → (B, To, \\*shape), through the policy's encoder: (B, features)."""
        return encode(self.encoder, frames)

    def _prepare(self, frames: dict[str, np.ndarray]) -> dict[str, Tensor]:
        """Normalized float tensors on the policy's device, as robomimic's own release does it."""
        if self.takes_raw_pictures:
            prepared = self.wrapped._prepare_observation(dict(frames), batched_ob=True)
            return {key: prepared[key] for key in self.shapes}
        return self._scaling.apply(frames, self.device)


def _as_robomimic_03(pictures: np.ndarray) -> np.ndarray:
    """(B, height, width, 3) of 0 to 255 → (B, 3, height, width) of 0 to 1, as its environments."""
    return np.moveaxis(pictures.astype(np.float32) / 255, -1, -3)


def as_array(value: Any) -> np.ndarray:
    """An array of an array or a tensor, from any device."""
    return np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)


def _finite(values: Tensor) -> bool:
    """Whether all are; one sum tells nearly always, and can overflow."""
    return math.isfinite(values.sum().item()) or bool(values.isfinite().all())


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
) -> Sampler:
    """What draws chunks of an algorithm's actions, with copies of its network's weights, which are
    copied again where it is trained on; made ready, so that a seed gives the same chunks.

    Raises:
        CheckpointError: its network is no ``ConditionalUnet1D``, or its weights are not finite.
        ValueError: a sampler that this chain does not allow, or an unknown option.
    """
    network = as_unet(rollout_networks(algo)[0]["noise_pred_net"])
    shape = int(algo.algo_config["horizon"]["prediction_horizon"]), int(algo.ac_dim)
    schedule = trained_schedule(algo.algo_config)
    place = algo.device, engine, precision, compile
    return made_ready.chunk_sampler(network, schedule, shape, sampler, *place)


def encode(encoder: Any, frames: Mapping[str, Tensor]) -> Tensor:
    """Key → (B, To, \\*shape) frames → (B, To·features), the condition of a chunk."""
    batch = len(next(iter(frames.values())))
    return encoder(obs={key: value.flatten(0, 1) for key, value in frames.items()}).reshape(
        batch, -1
    )
