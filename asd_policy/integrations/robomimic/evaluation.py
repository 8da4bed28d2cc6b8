"""An image policy of robomimic's as `asd-policy eval` drives it, robomimic's encoder in it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from asd_policy.errors import CheckpointError
from asd_policy.integrations.robomimic.rollout import AcceleratedPolicy, accelerate
from asd_policy.integrations.robomimic.source import RobomimicSource, rollout_networks
from asd_policy.integrations.robomimic_checkpoint import RobomimicCheckpoint
from asd_policy.policy.checkpoint import difference_table
from asd_policy.policy.horizon import Frame, RecedingHorizon
from asd_policy.samplers.config import SamplerConfig


class ImagePolicy(RecedingHorizon):
    """An :class:`AcceleratedPolicy` with the evaluator's calls, for many environments at once.

    Observations are those of this package's environments: low-dimensional keys (B, dim), and
    pictures (B, height, width, 3) uint8, first row at the top: robomimic 0.5's environments give
    the same, those of 0.3 numbers from 0 to 1 of (3, height, width).

    Args:
        file: the checkpoint. sampler: how chunks are drawn. place: device, engine, precision and
            compile, as for ``accelerate``, and CPU threads, as for ``DiffusionPolicy``.

    Raises:
        CheckpointError: observations other than low-dimensional ones and pictures in colour.
    """

    source: RobomimicSource

    def __init__(
        self, file: RobomimicCheckpoint, sampler: SamplerConfig, place: Mapping[str, Any]
    ) -> None:
        options = dict(place)
        threads = options.pop("threads", None)
        self.device = torch.device(options.pop("device"))
        pictures = _pictures(file)
        self.policy = _load(file, sampler, self.device, options)
        super().__init__(self.policy.source)
        self.source.pictures = pictures
        self.sampler = self.source.sampler
        self.sampler.threads = threads or self.sampler.threads
        self.action_dim = self.sampler.shape[1]
        self.card: dict[str, Any] = {"env_metadata": file.content["env_metadata"]}

    @property
    def observation_keys(self) -> dict[str, int]:
        """Key → how many numbers it has."""
        return {key: int(np.prod(shape)) for key, shape in self.source.shapes.items()}

    @property
    def engine(self) -> Any:
        return self.sampler.engine

    @property
    def schedule(self) -> Any:
        return self.sampler.schedule

    @property
    def threads(self) -> int:
        assert self.sampler.threads is not None
        return self.sampler.threads

    @property
    def window(self) -> int | None:
        return self.sampler.window

    def measure(self) -> None:
        """Time the network on this machine again, for ``window="auto"``."""
        self.sampler.measure()

    @property
    def parameters(self) -> int:
        """Of the network and the encoder."""
        return sum(p.numel() for p in rollout_networks(self.policy.policy)[0].parameters())

    def check_observation_space(self, keys: Mapping[str, int]) -> None:
        """Raise a CheckpointError with one table unless the low-dimensional keys are there."""
        wanted = {k: (n,) for k, n in self.observation_keys.items() if k not in self.pictures}
        table = difference_table(wanted, {k: (n,) for k, n in keys.items() if k in wanted})
        if table:
            raise CheckpointError(f"the policy was made for other observations:\n{table}")

    def reset(self, seeds: int | Sequence[int | None] | None = None) -> None:
        """Start len(seeds) episodes, each with its own random stream."""
        self.policy.start_episode()
        super().reset(seeds)
        self.sampler.expect(len(self.environments))

    def frames(self, observations: Mapping[str, Any], batch: int) -> Sequence[Sequence[Frame]]:
        """What the source makes of observations, pictures as robomimic's release has them."""
        rows = {
            key: value
            if self.source.takes_raw_pictures or key not in self.pictures
            else _as_robomimic_03(value)
            for key, value in observations.items()
        }
        return super().frames(rows, batch)


def _pictures(file: RobomimicCheckpoint) -> dict[str, tuple[int, int]]:
    """Key → (height, width) of the pictures in colour."""
    rgb = file.config["observation"]["modalities"]["obs"].get("rgb", [])
    other = [key for key in file.image_keys if key not in rgb or file.shapes[key][0] != 3]
    if other:
        raise CheckpointError(
            f"{file.path} sees {', '.join(other)}; expected low-dimensional keys and pictures in "
            "colour (rgb)"
        )
    return {key: (file.shapes[key][1], file.shapes[key][2]) for key in file.image_keys}


def _as_robomimic_03(pictures: np.ndarray) -> np.ndarray:
    """(B, height, width, 3) of 0 to 255 → (B, 3, height, width) of 0 to 1, as its environments."""
    return np.moveaxis(pictures.astype(np.float32) / 255, -1, -3)


def _load(
    file: RobomimicCheckpoint, sampler: SamplerConfig, device: torch.device, options: Any
) -> AcceleratedPolicy:
    import robomimic.utils.file_utils as file_utils

    with contextlib.redirect_stdout(io.StringIO()):  # what it prints is not the evaluation's
        policy, _ = file_utils.policy_from_checkpoint(ckpt_dict=dict(file.content), device=device)
    return accelerate(policy, sampler, verbose=False, **options)
