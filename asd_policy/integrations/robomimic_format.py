"""What robomimic's diffusion-policy checkpoints mean. Needs no robomimic.

Of its 0.5 release, ``DiffusionPolicyUNet``: weights ``policy.obs_encoder.*`` and
``policy.noise_pred_net.*``, configuration keys ``algo.{horizon, unet, ema, ddpm, ddim}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from asd_policy.ambient import untouched
from asd_policy.errors import CheckpointError
from asd_policy.integrations.diffusers_chain import of_steps, schedule_of
from asd_policy.networks.others import sizes_of
from asd_policy.networks.unet1d import ConditionalUnet1D
from asd_policy.policy.checkpoint import difference_table
from asd_policy.schedule import Schedule

ALGO_NAME = "diffusion_policy"
NETWORK_PREFIX = "policy.noise_pred_net."
GROUPS = "n_groups"  # of a file's network, beside its weights
_BUILT_BY_05 = {
    "diffusion_step_embed_dim": 256, "down_dims": (256, 512, 1024), "kernel_size": 5,
}  # fmt: skip
RECORDING_VERSION = 2  # schema of `run_trained_agent --record`; the first had none, and no scenes


def trained_schedule(algo: Mapping[str, Any]) -> Schedule:
    """The DDPM that the network was trained for, its inference steps those of the configuration.

    A DDIM checkpoint was trained as a DDPM too, and that is returned, in full, with the settings
    of its DDIM (``set_alpha_to_one``, ``steps_offset``), which ``Schedule.ddim`` heeds. With fewer
    inference than training steps the chain is that of diffusers' present releases; its release
    0.11.1, which robomimic pins, stepped by one training step whatever the spacing. With more, it
    is as many as were trained, as there.

    Raises:
        CheckpointError: neither ``ddpm`` nor ``ddim`` is enabled, or a value makes no sense.
    """
    kind = _chain(algo)
    try:
        schedule = schedule_of(f"{kind.upper()}Scheduler", algo[kind])
        return schedule if kind == "ddim" else of_steps(schedule, _steps(algo, kind))
    except ValueError as error:
        raise CheckpointError(f"algo.{kind}: {error}") from error


def _steps(algo: Mapping[str, Any], kind: str) -> int:
    return int(algo[kind]["num_inference_timesteps"])


def ddim_steps(algo: Mapping[str, Any]) -> int | None:
    """Steps of a checkpoint that is configured for DDIM; None for one of a DDPM.

    Raises:
        CheckpointError: neither ``ddpm`` nor ``ddim`` is enabled.
    """
    if _chain(algo) == "ddpm":
        return None
    return _steps(algo, "ddim")


def _chain(algo: Mapping[str, Any]) -> str:
    """The chain that is configured; the first where both are, as robomimic takes it."""
    for kind in ("ddpm", "ddim"):
        if kind in algo and algo[kind]["enabled"]:
            return kind
    raise CheckpointError("the configuration enables neither algo.ddpm nor algo.ddim")


def with_training_length(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the two entries that robomimic 0.5's training adds to it, and its
    loading asks for (the learning rate's schedule is made of them)."""
    parameters = config["algo"]["optim_params"]["policy"]
    parameters.setdefault("num_train_batches", config["experiment"]["epoch_every_n_steps"] or 1)
    parameters.setdefault("num_epochs", config["train"]["num_epochs"])
    return config


def architecture(
    weights: Mapping[str, Tensor], n_groups: int = 8, final_n_groups: int | None = None
) -> dict[str, Any]:
    """Arguments of the ``ConditionalUnet1D`` that these weights are of.

    The configuration does not say: robomimic builds its network with default sizes, whatever
    ``algo.unet`` holds. Only the number of groups cannot be read from the weights
    (:func:`groups_of`).

    Raises:
        CheckpointError: they are not those of such a network.
    """
    try:
        sizes = sizes_of(weights)
        return {**sizes, "n_groups": n_groups, "final_n_groups": final_n_groups}
    except (KeyError, IndexError) as error:
        raise CheckpointError(
            f"expected the weights of a ConditionalUnet1D, and found no {error}; transformers "
            "and language-conditioned networks are not supported"
        ) from error


def groups_of(
    model: Mapping[str, Any], algo: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> int:
    """Groups of the norms of a file's network; of all of them.

    robomimic 0.5 builds its default network, which has 8, whatever ``algo.unet`` says. This
    package heeds that, and writes the number beside the weights; before it did, other sizes than
    the default told that the configuration was heeded.

    Args:
        model: the file's, or what ``serialize()`` returned. algo: of its configuration.
        weights: of the network alone.
    """
    if GROUPS in model:
        return int(model[GROUPS])
    sizes = architecture(weights)
    default = all(sizes[name] == value for name, value in _BUILT_BY_05.items())
    return 8 if default else int(algo.get("unet", {}).get("n_groups", 8))


def groups_in(network: nn.Module) -> int:
    """Groups of the norms of a network in which all have as many.

    Raises:
        CheckpointError: they differ, which a file cannot tell.
    """
    found = {m.num_groups for m in network.modules() if isinstance(m, nn.GroupNorm)}
    if len(found) != 1:
        raise CheckpointError(
            "expected group norms of one number of groups, which robomimic's files can tell; got "
            f"{', '.join(map(str, sorted(found)))}"
        )
    return found.pop()


def network_from_weights(
    weights: Mapping[str, Tensor], n_groups: int = 8, final_n_groups: int | None = None
) -> ConditionalUnet1D:
    """The network that a state dict is of, loaded.

    Raises:
        CheckpointError: weights that fit no such network (one table of the differences), or that
            are not finite.
    """
    sizes = architecture(weights, n_groups, final_n_groups)
    try:
        with torch.device("meta"):
            network = ConditionalUnet1D(**sizes)
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"the weights fit no ConditionalUnet1D: {error}") from error
    expected = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    table = difference_table(expected, {k: tuple(v.shape) for k, v in weights.items()})
    if table:
        raise CheckpointError(f"the weights fit no ConditionalUnet1D:\n{table}")
    check_finite(weights)
    with untouched(gradients=False):
        network = network.to_empty(device="cpu")
        network.load_state_dict({k: v.detach().float() for k, v in weights.items()})
    return network.eval().requires_grad_(False)


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """Raise a CheckpointError that names weights which hold a NaN or an infinity."""
    bad = [k for k, v in weights.items() if not bool(torch.isfinite(v).all())]
    if bad:
        raise CheckpointError(f"weights that are not finite: {', '.join(bad)}")


def offset_and_scale(
    statistics: Mapping[str, Mapping[str, Any]], keys: Sequence[str], what: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Key → (offset, scale), so that a value is offset + scale·normalized.

    ``mean`` and ``std`` in robomimic 0.3, ``offset`` and ``scale`` in 0.5; each with a
    leading axis of length 1.

    Raises:
        CheckpointError: a key without statistics, or with others.
    """
    found = {}
    for key in keys:
        values = statistics.get(key, {})
        names = ("offset", "scale") if "offset" in values else ("mean", "std")
        if any(name not in values for name in names):
            raise CheckpointError(
                f"no normalization statistics (offset and scale, or mean and std) of the {what} "
                f"{key!r}; there are some of: {', '.join(statistics)}"
            )
        offset, scale = (np.asarray(values[name], np.float32)[0] for name in names)
        found[key] = offset, scale
    return found
