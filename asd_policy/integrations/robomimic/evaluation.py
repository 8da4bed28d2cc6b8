"""An image policy of robomimic's as `asd-policy eval` drives it, robomimic's encoder in it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from asd_policy.errors import CheckpointError
from asd_policy.integrations.driven import DrivenPolicy
from asd_policy.integrations.robomimic.rollout import AcceleratedPolicy, accelerate
from asd_policy.integrations.robomimic.source import RobomimicSource, rollout_networks
from asd_policy.integrations.robomimic_checkpoint import RobomimicCheckpoint
from asd_policy.policy.horizon import Frame
from asd_policy.samplers.config import SamplerConfig


class ImagePolicy(DrivenPolicy):
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
        threads, device = options.pop("threads", None), torch.device(options.pop("device"))
        pictures = _pictures(file)
        self.policy = _load(file, sampler, device, options)
        source = self.policy.source
        source.pictures = pictures
        networks = rollout_networks(self.policy.policy)[0]
        parameters = sum(p.numel() for p in networks.parameters())
        card = {"env_metadata": file.content["env_metadata"]}
        super().__init__(source, source.shapes, parameters, card, threads)

    def reset(self, seeds: int | Sequence[int | None] | None = None) -> None:
        """Start len(seeds) episodes, each with its own random stream."""
        self.policy.start_episode()
        super().reset(seeds)

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
