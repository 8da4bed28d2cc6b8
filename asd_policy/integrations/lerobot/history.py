"""What a LeRobot policy has seen, kept where its chunks are asked for.

LeRobot fills a policy's queues of observations in ``select_action`` alone. Its policy server asks
``predict_action_chunk`` directly, which finds them empty and fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lerobot.policies.utils import populate_queues
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE
from torch import Tensor

TYPES = ("diffusion", "asd_diffusion", "multi_task_dit")  # policies that keep such queues


def remember(policy: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Put an observation into a policy's queues, as its ``select_action`` does.

    The first one fills them. One that is the newest there already is not put in twice, and a batch
    with a time axis, as a data loader makes it, has its history with it.

    Args:
        policy: one of ``TYPES``. batch: an observation as its preprocessor returns it; states are
            (B, width).

    Returns:
        The batch with what ``predict_action_chunk`` looks for: its pictures in one tensor.
    """
    made = {key: value for key, value in batch.items() if key != ACTION}
    state = made[OBS_STATE]
    if state.ndim != 2:
        return made
    pictures = policy.config.image_features
    if pictures and OBS_IMAGES not in made:
        made[OBS_IMAGES] = torch.stack([made[key] for key in pictures], dim=-4)
    queue = policy._queues[OBS_STATE]
    if not queue or queue[-1] is not state:
        policy._queues = populate_queues(policy._queues, made)
    return made


class ChunkWithHistory:
    """Stands in the place of a policy's ``predict_action_chunk``: an observation goes into the
    queues first, unless ``select_action`` has put it there."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    def __call__(self, batch: Mapping[str, Any], **kwargs: Any) -> Tensor:
        """(B, n_action_steps, action_dim) actions, from the current one on."""
        batch = remember(self.policy, batch)
        chunk: Tensor = type(self.policy).predict_action_chunk(self.policy, batch, **kwargs)
        return chunk


def keep_history(policy: Any) -> Any:
    """The same policy, whose chunks may be asked for without ``select_action``."""
    vars(policy)["predict_action_chunk"] = ChunkWithHistory(policy)
    return policy
