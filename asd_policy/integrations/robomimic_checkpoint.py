"""robomimic's checkpoint files, read without running what they hold. Needs no robomimic."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asd_policy.errors import CheckpointError, DatasetError
from asd_policy.integrations import plain_files
from asd_policy.integrations.robomimic_format import (
    ALGO_NAME,
    NETWORK_PREFIX,
    architecture,
    ddim_steps,
    groups_in,
    groups_of,
    network_from_weights,
    offset_and_scale,
    trained_schedule,
)
from asd_policy.integrations.robomimic_layout import as_published
from asd_policy.networks.unet1d import ConditionalUnet1D
from asd_policy.policy.checkpoint import Checkpoint
from asd_policy.policy.config import PolicyConfig
from asd_policy.policy.normalizer import Normalizer

DIGEST = "asd_policy_weights_sha256"  # in files that this package writes; robomimic ignores it
_NEEDED = ("model", "config", "algo_name", "env_metadata", "shape_metadata")
_EXPECTED = "weights and plain values of robomimic's (diffusion_policy's end in .ckpt)"


def _numpy_number(module: str) -> Any:
    """NumPy's constructor of numbers, under the name that a file calls it by."""
    construct: Any = np.float64(0).__reduce__()[0]

    def scalar(*arguments: Any) -> Any:
        return construct(*arguments)

    scalar.__module__, scalar.__qualname__ = module, "scalar"
    return scalar


# What robomimic's files hold beyond tensors and plain values: NumPy numbers, in ``variable_state``
# (best returns so far) and in statistics. No arrays of objects, no functions, no classes.
_ALLOWED: list[Any] = [
    _numpy_number("numpy.core.multiarray"),  # written under NumPy 1
    _numpy_number("numpy._core.multiarray"),  # and under 2
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "u1", "?")),
]


def read_file(path: str | Path) -> dict[str, Any]:
    """The dictionary of a ``.pth`` file, its archive checked byte for byte.

    A changed byte is found by the archive's checksums. Tensors that changed places are found in
    files that this package wrote, which hold a digest; in robomimic's own, only where they differ
    in shape, since nothing there says which is which.

    Raises:
        CheckpointError: no such file, a damaged one, one that holds more than weights and plain
            values, or no robomimic checkpoint.
    """
    path = Path(path)
    content = plain_files.read(path, _ALLOWED, _EXPECTED)
    missing = [key for key in _NEEDED if not isinstance(content, dict) or key not in content]
    if missing:
        raise CheckpointError(f"{path} is no robomimic checkpoint: it has no {', '.join(missing)}")
    several = [key for key in _NEEDED[3:] if isinstance(content[key], list)]
    if several:
        raise CheckpointError(
            f"{path} was trained on {len(content[several[0]])} datasets: its {several[0]} is a "
            "list, which robomimic 0.5 does not load either; expected a file of one dataset"
        )
    if DIGEST in content and content[DIGEST] != _digest_of(content["model"]):
        raise CheckpointError(f"{path} was changed: its weights are not those that were exported")
    return content


def weights_digest(model: Mapping[str, Any]) -> str:
    """SHA-256 of all weights of a file (``nets`` and ``ema``): names, types, shapes and values."""
    digest = hashlib.sha256()
    for part in ("nets", "ema"):
        for name, value in sorted((model.get(part) or {}).items()):
            array = value.detach().cpu().contiguous().numpy()
            digest.update(f"{part} {name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def _digest_of(model: Any) -> str | None:
    try:
        return weights_digest(model)
    except (AttributeError, TypeError, RuntimeError):
        return None  # no weights at all: not those that were exported


@dataclass(frozen=True)
class RobomimicCheckpoint:
    """A diffusion policy's file, understood.

    Attributes:
        path: where it was. weights: those that act: averages where there are some.
        uses_ema: whether they are averages. config: the configuration, nested dictionaries.
        shapes: observation key → shape, in the encoder's order. action_dim: of the policy.
        content: the whole file.
    """

    path: Path
    weights: Mapping[str, torch.Tensor]
    uses_ema: bool
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    action_dim: int
    content: Mapping[str, Any]

    @property
    def image_keys(self) -> list[str]:
        """Keys that are not low-dimensional."""
        low = self.config["observation"]["modalities"]["obs"]["low_dim"]
        return [key for key in self.shapes if key not in low]


def read_checkpoint(path: str | Path) -> RobomimicCheckpoint:
    """Read and check a diffusion policy's file.

    Raises:
        CheckpointError: as :func:`read_file`; another algorithm; entries of the wrong kind.
    """
    content = read_file(path)
    name = content["algo_name"]
    if name != ALGO_NAME:
        raise CheckpointError(f"{path}: expected the algorithm {ALGO_NAME!r}, got {name!r}")
    try:
        config = json.loads(content["config"])
        model, shape = content["model"], content["shape_metadata"]
        weights = model["nets"] if model.get("ema") is None else model["ema"]
        used = [k for keys in config["observation"]["modalities"]["obs"].values() for k in keys]
        shapes = {k: tuple(map(int, v)) for k, v in shape["all_shapes"].items() if k in used}
        if not all(isinstance(value, torch.Tensor) for value in weights.values()):
            raise TypeError("weights that are no tensors")
        return RobomimicCheckpoint(
            Path(path), dict(weights), model.get("ema") is not None, config, shapes,
            int(shape["ac_dim"]), content,
        )  # fmt: skip
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: {type(error).__name__}: {error}") from error


def to_checkpoint(file: RobomimicCheckpoint) -> Checkpoint:
    """A low-dimensional policy as a checkpoint of this package.

    ``object`` is that of published data, whatever the file was trained on (see
    :func:`asd_policy.integrations.robomimic_layout.as_published`).

    Raises:
        CheckpointError: image observations, whose encoder only robomimic has; weights that do
            not fit; sizes that make no sense.
    """
    if file.image_keys:
        raise CheckpointError(
            f"{file.path} sees {', '.join(file.image_keys)}: a checkpoint folder holds "
            "low-dimensional policies. Use the file itself: `asd-policy eval --checkpoint` takes "
            "it, and asd_policy.integrations.robomimic.accelerate() keeps robomimic's encoder"
        )
    algo, train = file.config["algo"], file.config["train"]
    network = _network(file)
    keys = {key: int(np.prod(shape)) for key, shape in file.shapes.items()}
    sizes = [network.input_dim, network.global_cond_dim]
    names = {"obs": "observation", "action": "action", "pred": "prediction"}
    horizon: dict[str, Any] = {
        f"{ours}_horizon": int(algo["horizon"][f"{theirs}_horizon"])
        for ours, theirs in names.items()
    }
    if sizes != [file.action_dim, horizon["obs_horizon"] * sum(keys.values())]:
        raise CheckpointError(
            f"{file.path}: the network is for {sizes[0]} action numbers and a condition of "
            f"{sizes[1]}; the file describes {file.action_dim}, and {horizon['obs_horizon']} "
            f"observations of {sum(keys.values())}"
        )
    try:
        config = PolicyConfig(keys, file.action_dim, **horizon, **_unet_sizes(network))
    except ValueError as error:
        raise CheckpointError(f"{file.path}: {error}") from error
    made = Checkpoint(
        network,
        config,
        trained_schedule(algo),
        _normalizer(file.content.get("obs_normalization_stats"), keys, "observation"),
        _action_normalizer(file, train),
        _card(file),
    )
    try:
        return as_published(made)
    except (CheckpointError, DatasetError) as error:
        raise CheckpointError(f"{file.path}: {error}") from error


def _network(file: RobomimicCheckpoint) -> ConditionalUnet1D:
    start = len(NETWORK_PREFIX)
    own = {k[start:]: v for k, v in file.weights.items() if k.startswith(NETWORK_PREFIX)}
    # (Low-dimensional observations, of which the encoder has none.)
    other = [k for k in file.weights if not k.startswith(NETWORK_PREFIX)]
    if other:
        raise CheckpointError(f"{file.path}: weights that are not known: {', '.join(other[:5])}")
    try:
        groups = groups_of(file.content["model"], file.config["algo"], own)
        return network_from_weights(own, groups)
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: {error}") from error


def _unet_sizes(network: ConditionalUnet1D) -> dict[str, Any]:
    sizes = architecture(network.state_dict(), groups_in(network))
    kept = "down_dims", "kernel_size", "n_groups", "cond_predict_scale"
    return {
        **{name: sizes[name] for name in kept},
        "step_embed_dim": sizes["diffusion_step_embed_dim"],
    }


def _normalizer(statistics: Any, sizes: Mapping[str, int], what: str) -> Normalizer:
    """From offset and scale: low and high are those that are sent to −1 and 1."""
    offset, scale = np.zeros(sum(sizes.values())), np.ones(sum(sizes.values()))
    if statistics is not None:
        found = offset_and_scale(statistics, list(sizes), what)
        offset = np.concatenate([pair[0].reshape(-1) for pair in found.values()])
        scale = np.concatenate([pair[1].reshape(-1) for pair in found.values()])
    try:
        return Normalizer(torch.from_numpy(offset - scale), torch.from_numpy(offset + scale))
    except ValueError as error:
        raise CheckpointError(f"normalization of the {what}: {error}") from error


def _action_normalizer(file: RobomimicCheckpoint, train: Mapping[str, Any]) -> Normalizer:
    statistics = file.content.get("action_normalization_stats")
    if statistics is None:
        return _normalizer(None, {"actions": file.action_dim}, "actions")
    sizes = {key: int(np.asarray(statistics[key]["offset"]).size) for key in train["action_keys"]}
    formats = {str(train["action_config"][key].get("format")) for key in sizes} - {"None"}
    if formats or sum(sizes.values()) != file.action_dim:
        raise CheckpointError(
            f"{file.path}: actions that are converted when executed ({', '.join(formats)}) are "
            "supported by asd_policy.integrations.robomimic.accelerate only"
        )
    return _normalizer(statistics, sizes, "actions")


def _card(file: RobomimicCheckpoint) -> dict[str, Any]:
    """What is only reported."""
    made: dict[str, Any] = {
        "converted_from": "robomimic",
        "uses_ema": file.uses_ema,
        "env_metadata": json.loads(json.dumps(file.content["env_metadata"], default=str)),
        "robomimic_config": dict(file.config),
    }
    steps = ddim_steps(file.config["algo"])
    if steps is not None:
        made["note"] = (
            f"robomimic samples it by DDIM in {steps} steps; here it is the DDPM that it was "
            "trained for, a different distribution of actions"
        )
        if trained_schedule(file.config["algo"]).config.prediction_type == "epsilon":
            made["note"] += f" (sampler ddim-{steps} gives the former)"
    return made
