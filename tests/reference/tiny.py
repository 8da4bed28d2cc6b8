"""Policies and data small enough for a test."""

from __future__ import annotations

import numpy as np
import torch

from asd_policy import Schedule
from asd_policy.data.replay import Replay
from asd_policy.policy import Checkpoint, Normalizer, PolicyConfig

KEYS = {"object": 3, "arm": 2}
ACTION_DIM = 2


def tiny_config(**changes: object) -> PolicyConfig:
    values = {
        "observation_keys": KEYS,
        "action_dim": ACTION_DIM,
        "obs_horizon": 2,
        "action_horizon": 3,
        "pred_horizon": 8,
        "down_dims": (8, 16),
        "step_embed_dim": 8,
        "n_groups": 4,
    }
    return PolicyConfig(**(values | changes))


def tiny_checkpoint(num_steps: int = 10, **changes: object) -> Checkpoint:
    """Random weights, observations between −2 and 2, actions between −1 and 1."""
    config = tiny_config(**changes)
    torch.manual_seed(0)
    network = config.build_network().eval()
    observation = torch.full((config.observation_dim,), 2.0)
    action = torch.ones(config.action_dim)
    return Checkpoint(
        network,
        config,
        Schedule.ddpm(num_steps),
        Normalizer(-observation, observation, quaternions=config.quaternions),
        Normalizer(-action, action),
        {"task": "toy"},
    )


def tiny_replay(lengths: tuple[int, ...] = (12, 5, 9)) -> Replay:
    """Smooth episodes whose actions follow from the observations."""
    rng = np.random.default_rng(0)
    rows = sum(lengths)
    observations = {
        key: rng.uniform(-1, 1, size=(rows, dim)).cumsum(0).astype(np.float32)
        for key, dim in KEYS.items()
    }
    actions = np.tanh(observations["object"][:, :ACTION_DIM]).astype(np.float32)
    return Replay(observations, actions, np.cumsum(lengths), np.zeros(rows, bool), {"task": "toy"})
