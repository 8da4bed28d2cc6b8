"""A policy for the other order of ``object`` (see :mod:`asd_policy.data.object_layout`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from asd_policy.data import object_layout
from asd_policy.data.robomimic_hdf5 import OBJECT_LAYOUT, has_published_layout
from asd_policy.errors import CheckpointError
from asd_policy.integrations.robomimic_format import network_from_weights
from asd_policy.policy.checkpoint import Checkpoint
from asd_policy.policy.normalizer import Normalizer

KEY = "object"
Order = Callable[[str], tuple[np.ndarray, np.ndarray]]


def as_published(made: Checkpoint) -> Checkpoint:
    """A policy whose ``object`` is in the order of published data, which environments here give.

    ``card["env_metadata"]`` says which order it was trained in; that of a task that is not known
    here stays as it is, and so does any other policy.
    """
    env: Any = made.card.get("env_metadata")
    if not _differs(made, env):
        return made
    made = _reordered(made, object_layout.to_published, env)
    return replace(
        made, card={**made.card, "env_metadata": {**env, "object_layout": OBJECT_LAYOUT}}
    )


def as_simulated(made: Checkpoint, env: Mapping[str, Any]) -> tuple[Checkpoint, dict[str, Any]]:
    """A policy for the ``object`` that robosuite itself gives, of the version that an environment's
    description names, and the description without the published layout."""
    plain = {k: v for k, v in env.items() if (k, v) != ("object_layout", OBJECT_LAYOUT)}
    if not _differs(made, plain):
        return made, dict(env)
    return _reordered(made, object_layout.from_published, plain), plain


def _differs(made: Checkpoint, env: Any) -> bool:
    return (
        KEY in made.config.observation_keys
        and isinstance(env, dict)
        and object_layout.is_known(env.get("env_name"))
        and not has_published_layout(env)
    )


def _reordered(made: Checkpoint, order: Order, env: Mapping[str, Any]) -> Checkpoint:
    """The same function of ``object`` as it comes in another order.

    Signs go into the normalizer (a mirrored column has ``low`` above ``high``), since the network
    bends what it sees before its first product; the order goes into the columns of that product.
    """
    keys = dict(made.config.observation_keys)
    columns, signs = order(env["env_name"])
    if len(columns) != keys[KEY]:
        raise CheckpointError(
            f"expected {len(columns)} numbers of 'object' in {env['env_name']}, got {keys[KEY]}"
        )
    start = sum(keys[key] for key in list(keys)[: list(keys).index(KEY)])
    whole = np.arange(sum(keys.values()))
    whole[start : start + len(columns)] = start + columns
    factor = torch.ones(len(whole), dtype=torch.float32, device="cpu")
    factor[start : start + len(columns)] = torch.from_numpy(signs).float()
    old = made.observation_normalizer
    return replace(
        made,
        network=_network(made, whole),
        observation_normalizer=Normalizer(old.low[whole] * factor, old.high[whole] * factor),
    )


def _network(made: Checkpoint, columns: np.ndarray) -> torch.nn.Module:
    """The network for observations whose numbers ``columns`` stand in another order."""
    embed, horizon = made.config.step_embed_dim, made.config.obs_horizon
    frames = np.arange(horizon)[:, None] * len(columns)
    picked = np.concatenate([np.arange(embed), embed + (frames + columns).reshape(-1)])
    weights = {
        key: value[:, picked] if key.endswith("cond_encoder.1.weight") else value
        for key, value in made.network.state_dict().items()
    }
    return network_from_weights(weights, made.config.n_groups, made.config.final_n_groups)
