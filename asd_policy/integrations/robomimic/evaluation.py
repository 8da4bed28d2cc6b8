"""An image policy of robomimic's as `asd-policy eval` drives it, robomimic's encoder in it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from typing import Any

from asd_policy.errors import CheckpointError
from asd_policy.integrations.robomimic.chain import check_algorithm, for_chain
from asd_policy.integrations.robomimic.source import RobomimicSource, rollout_networks
from asd_policy.integrations.robomimic_checkpoint import RobomimicCheckpoint
from asd_policy.policy.sampled import EncodedPolicy
from asd_policy.samplers.config import SamplerConfig


def open_file(
    file: RobomimicCheckpoint, place: Mapping[str, Any]
) -> Callable[[SamplerConfig], EncodedPolicy]:
    """Load an image policy once.

    Observations are those of this package's environments: low-dimensional keys (B, dim), and
    pictures (B, height, width, 3) uint8, first row at the top: robomimic 0.5's environments give
    the same, those of 0.3 numbers from 0 to 1 of (3, height, width).

    Args:
        place: device, engine, precision, compile and threads of ``DiffusionPolicy``.

    Returns:
        what makes its policy from a sampler; such policies share robomimic's.

    Raises:
        CheckpointError: observations other than low-dimensional ones and pictures in colour.
    """
    import robomimic.utils.file_utils as file_utils

    options = dict(place)
    threads, device = options.pop("threads", None), options.pop("device")
    pictures = _pictures(file)
    with contextlib.redirect_stdout(io.StringIO()):  # what it prints is not the evaluation's
        loaded, _ = file_utils.policy_from_checkpoint(ckpt_dict=dict(file.content), device=device)
    check_algorithm(loaded.policy)
    loaded.start_episode()  # its networks are evaluated
    networks = rollout_networks(loaded.policy)[0].eval()
    parameters = sum(p.numel() for p in networks.parameters())

    def made(config: SamplerConfig) -> EncodedPolicy:
        config = for_chain(config, loaded.policy.algo_config)
        source = RobomimicSource(loaded, config, **options)
        source.pictures = pictures
        card = {"env_metadata": file.content["env_metadata"]}
        return EncodedPolicy(source, source.shapes, parameters, card, threads)

    return made


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
