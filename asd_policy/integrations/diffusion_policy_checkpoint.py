"""diffusion_policy's checkpoints (Chi et al., 2023), ``.ckpt``, read without running them.

Needs none of its packages. Such a file is a pickle of weights, of a configuration (omegaconf) and
of a few pickles within it; the classes that the configuration is made of are replaced by empty ones
that only hold what is in them, the inner pickles stay bytes, and everything else is refused.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from asd_policy.errors import CheckpointError
from asd_policy.integrations import plain_files
from asd_policy.integrations.diffusers_chain import of_steps, schedule_of
from asd_policy.integrations.diffusion_policy_config import Settings
from asd_policy.integrations.robomimic_format import (
    architecture,
    check_finite,
    network_from_weights,
)
from asd_policy.networks import TransformerSizes
from asd_policy.policy.checkpoint import Checkpoint, difference_table
from asd_policy.policy.config import PolicyConfig
from asd_policy.policy.normalizer import Normalizer
from asd_policy.schedule import Schedule

SUFFIX = ".ckpt"
_NETWORK, _NORMALIZER = "model.", "normalizer.params_dict."
_MODULE = "diffusion_policy.policy.diffusion_"
_UNETS = f"{_MODULE}unet_lowdim_policy.DiffusionUnetLowdimPolicy"
_TRANSFORMERS = f"{_MODULE}transformer_lowdim_policy.DiffusionTransformerLowdimPolicy"
_NO_WEIGHTS = {"_dummy_variable", "mask", "memory_mask"}  # among those of a transformer
_LAST_GROUPS = 8  # of the network's last block, whatever n_groups says
_SIZES = ("down_dims", "kernel_size", "n_groups", "cond_predict_scale", "final_n_groups")
_PLAIN_TYPES = {t.__name__: t for t in (dict, list, tuple, set, int, float, str, bool, bytes)}


def _named(thing: Any, module: str, name: str) -> Any:
    thing.__module__, thing.__qualname__, thing.__name__ = module, name, name
    return thing


def _stand_in(module: str, name: str) -> Any:
    """A class that holds what a file puts into it, under the name that the file calls it by."""
    return _named(type(name, (), {}), module, name)


def _load_type(name: str) -> type:
    """dill's way to name a type: the plain ones only."""
    if name not in _PLAIN_TYPES:
        raise pickle.UnpicklingError(f"it holds the type {name!r}")
    return _PLAIN_TYPES[name]


def _dictionary(*factory: Any) -> dict[Any, Any]:
    """In place of a defaultdict, which PyTorch's reader does not fill."""
    return {}


_DICT = _stand_in("omegaconf.dictconfig", "DictConfig")
_LIST = _stand_in("omegaconf.listconfig", "ListConfig")
_VALUE = _stand_in("omegaconf.nodes", "AnyNode")
# All that their `save_checkpoint` writes besides weights and plain values.
_ALLOWED = [
    _DICT,
    _LIST,
    _VALUE,
    _stand_in("omegaconf.base", "ContainerMetadata"),
    _stand_in("omegaconf.base", "Metadata"),
    _stand_in("typing", "Any"),
    _named(_load_type, "dill._dill", "_load_type"),
    _named(_dictionary, "collections", "defaultdict"),
]


@dataclass(frozen=True)
class DiffusionPolicyCheckpoint:
    """A file, understood.

    Attributes:
        path: where it was. settings: its configuration.
        weights: of the policy that acts: ``ema_model`` where it was trained with averages.
        uses_ema: whether they are averages.
    """

    path: Path
    settings: Settings
    weights: Mapping[str, Tensor]
    uses_ema: bool


def read_checkpoint(path: str | Path) -> DiffusionPolicyCheckpoint:
    """Read a ``.ckpt`` file.

    Raises:
        CheckpointError: no such file, a damaged one, one that holds more than their
            ``save_checkpoint`` writes, or something else's.
    """
    path = Path(path)
    expected = (
        "what diffusion_policy's save_checkpoint writes (weights, configuration, plain values)"
    )
    content = plain_files.read(path, _ALLOWED, expected)
    if not isinstance(content, dict) or not {"cfg", "state_dicts"} <= content.keys():
        raise CheckpointError(f"{path} is no checkpoint of diffusion_policy: no cfg, state_dicts")
    tree = _tree(content["cfg"])
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: expected a configuration, got {type(content['cfg'])}")
    settings = Settings(tree)
    uses_ema = bool(settings.get("training.use_ema", False))
    weights = content["state_dicts"].get("ema_model" if uses_ema else "model")
    if not isinstance(weights, Mapping) or not all(isinstance(v, Tensor) for v in weights.values()):
        kind = "averaged (ema_model)" if uses_ema else "trained (model)"
        raise CheckpointError(f"{path} holds no {kind} weights, which its configuration names")
    return DiffusionPolicyCheckpoint(path, settings, dict(weights), uses_ema)


def _tree(node: Any) -> Any:
    """What the configuration's nodes hold, as dictionaries, lists and plain values."""
    if isinstance(node, (_DICT, _LIST)):
        return _tree(vars(node).get("_content"))
    if isinstance(node, _VALUE):
        return vars(node).get("_val")
    if isinstance(node, dict):
        return {key: _tree(value) for key, value in node.items()}
    return [_tree(value) for value in node] if isinstance(node, list) else node


def to_checkpoint(file: DiffusionPolicyCheckpoint) -> Checkpoint:
    """A low-dimensional policy that observations condition, as a checkpoint of this package: a
    U-Net with a global condition, or a transformer.

    Raises:
        CheckpointError: another policy, a chunk that begins or ends otherwise than here, or weights
            that do not fit.
    """
    try:
        make = _check_kind(file)
        weights = {
            k.removeprefix(_NETWORK): v for k, v in file.weights.items() if k.startswith(_NETWORK)
        }
        config, network = make(file.settings, weights)
        schedule = trained_schedule(file.settings)
        obs, action = (_normalizer(file, key) for key in ("obs", "action"))
    except (CheckpointError, ValueError, TypeError) as error:
        raise CheckpointError(f"{file.path}: {error}") from error
    card = {
        "converted_from": "diffusion_policy",
        "uses_ema": file.uses_ema,
        "task_name": file.settings.get("task_name"),
    }
    if _scheduler(file.settings) == "DDIMScheduler":
        steps = int(file.settings.get("policy.num_inference_steps") or schedule.config.num_steps)
        card["note"] = (
            f"diffusion_policy samples it by DDIM in {steps} steps; here it is the DDPM that it "
            "was trained for, a different distribution of actions"
        )
        if schedule.config.prediction_type == "epsilon":  # of others, diffusers 0.11.1 had its own
            card["note"] += f" (sampler ddim-{steps} gives the former)"
    return Checkpoint(network, config, schedule, obs, action, card)


_Make = Callable[[Settings, Mapping[str, Tensor]], tuple[PolicyConfig, nn.Module]]


def _check_kind(file: DiffusionPolicyCheckpoint) -> _Make:
    """What makes the file's network, if its policy is of a kind that a checkpoint folder holds."""
    get = file.settings.get
    whole = {"policy.pred_action_steps_only": (False, "chunks from the first observation on")}
    kinds: dict[Any, tuple[_Make, dict[str, tuple[bool, str]]]] = {
        _UNETS: (_unet, {
            "policy.obs_as_global_cond": (True, "observations as a global condition"),
            "policy.oa_step_convention":
                (True, "the first executed action at the last observation"),
        }),
        _TRANSFORMERS: (_transformer, {
            "policy.obs_as_cond": (True, "observations as a condition"),
            "policy.model.time_as_cond": (True, "transformers that the time conditions"),
        }),
    }  # fmt: skip
    kind = get("policy._target_")
    if kind not in kinds:
        names = " or ".join(name.rpartition(".")[2] for name in kinds)
        raise _other("low-dimensional U-Nets and transformers", "policy._target_", names, kind)
    make, wanted = kinds[kind]
    for name, (value, what) in (wanted | whole).items():
        got = get(name, name == "policy.model.time_as_cond")  # the one whose default is True
        if got != value:
            raise _other(what, name, value, got)
    return make


def _other(what: str, name: str, value: object, got: object) -> CheckpointError:
    return CheckpointError(
        f"a checkpoint folder holds {what} ({name}: {value}); this file says {got}. "
        "asd_policy.integrations.diffusion_policy.accelerate() takes the loaded policy"
    )


def _config(settings: Settings, **sizes: Any) -> PolicyConfig:
    names = ("obs_dim", "action_dim", "n_obs_steps", "n_action_steps", "horizon")
    observed, *rest = (int(settings.get(f"policy.{name}")) for name in names)
    return PolicyConfig({"obs": observed}, rest[0], rest[1], rest[2], rest[3], **sizes)


def _unet(settings: Settings, weights: Mapping[str, Tensor]) -> tuple[PolicyConfig, nn.Module]:
    groups = int(settings.get("policy.model.n_groups", 8))
    last = None if groups == _LAST_GROUPS else _LAST_GROUPS
    network = network_from_weights(weights, groups, last)
    sizes = architecture(weights, groups, last)
    config = _config(
        settings,
        step_embed_dim=sizes["diffusion_step_embed_dim"],
        **{name: sizes[name] for name in _SIZES},
    )
    _check_sizes(config, sizes)
    return config, network


def _transformer(
    settings: Settings, weights: Mapping[str, Tensor]
) -> tuple[PolicyConfig, nn.Module]:
    defaults = {"n_layer": 12, "n_head": 12, "n_emb": 768, "n_cond_layers": 0, "causal_attn": False}
    sizes = {name: settings.get(f"policy.model.{name}", value) for name, value in defaults.items()}
    made = TransformerSizes(**sizes)
    config = _config(settings, transformer=made)
    network = config.build_network()
    own = {k: v.detach().float() for k, v in weights.items() if k not in _NO_WEIGHTS}
    table = difference_table(
        {k: tuple(v.shape) for k, v in network.state_dict().items()},
        {k: tuple(v.shape) for k, v in own.items()},
    )
    if table:
        raise CheckpointError(f"the weights fit no such TransformerForDiffusion:\n{table}")
    if ("mask" in weights) != made.causal_attn:
        has = "masks" if "mask" in weights else "no masks"
        raise CheckpointError(
            f"policy.model.causal_attn is {made.causal_attn}, and the weights have {has}"
        )
    check_finite(own)
    network.load_state_dict(own)
    return config, network.eval().requires_grad_(False)


def _check_sizes(config: PolicyConfig, sizes: Mapping[str, Any]) -> None:
    got = sizes["input_dim"], sizes["global_cond_dim"]
    if got != (config.action_dim, config.condition_dim):
        raise CheckpointError(
            f"the network is for {got[0]} action numbers and a condition of {got[1]}; the "
            f"configuration describes {config.action_dim}, and {config.condition_dim}"
        )


def trained_schedule(settings: Settings) -> Schedule:
    """The DDPM that the network was trained for, in as many steps as the policy takes.

    A file that samples by DDIM was trained as a DDPM too, and that is returned, in full.

    Raises:
        ValueError: another scheduler, or values that make no schedule.
    """
    kind = _scheduler(settings)
    schedule = schedule_of(kind, settings.get("policy.noise_scheduler") or {})
    steps = int(settings.get("policy.num_inference_steps") or schedule.num_steps)
    return schedule if kind == "DDIMScheduler" else of_steps(schedule, steps)


def _scheduler(settings: Settings) -> str:
    return str(settings.get("policy.noise_scheduler._target_")).rpartition(".")[2]


def _normalizer(file: DiffusionPolicyCheckpoint, key: str) -> Normalizer:
    """Theirs is x · scale + offset; ours is the bounds that it sends to −1 and 1."""
    names = [f"{_NORMALIZER}{key}.{part}" for part in ("scale", "offset")]
    missing = [name for name in names if name not in file.weights]
    if missing:
        raise CheckpointError(f"it lacks the normalizer's {', '.join(missing)}")
    scale, offset = (file.weights[name].double() for name in names)
    return Normalizer((-1 - offset) / scale, (1 - offset) / scale)
