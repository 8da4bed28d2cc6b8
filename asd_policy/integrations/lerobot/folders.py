"""Folders of LeRobot's policies: of every release, and checked against their weights."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from asd_policy.device import usable_device
from asd_policy.errors import CheckpointError
from asd_policy.integrations.lerobot.accelerating import accelerate, as_saved, own_loops
from asd_policy.integrations.lerobot.version import check_version
from asd_policy.policy.checkpoint import difference_table
from asd_policy.samplers.config import SamplerConfig

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PROCESSORS = "policy_preprocessor.json", "policy_postprocessor.json"
# Before LeRobot 0.4, statistics were buffers of the policy, and there were no processors.
_NORMALIZERS = "normalize_inputs.", "normalize_targets.", "unnormalize_outputs."
# What changes training, and nothing that a loaded policy does.
_TRAINING = {"gradient_checkpointing"}


def load(
    folder: str | Path,
    sampler: str | SamplerConfig = "auto",
    *,
    device: str | None = None,
    **options: Any,
) -> tuple[Any, Any, Any]:
    """(policy, preprocessor, postprocessor) of a folder, or of a repository on the Hub.

    Old folders without processor files are read, newer ones than the LeRobot that is installed too;
    an image encoder is not downloaded, since its weights are in the folder.

    Args:
        folder: as LeRobot's ``save_pretrained`` writes it. device: in place of the one it names.
        sampler, options: as for :func:`accelerate`; what is not given is as the settings of a
            folder of the type ``asd_diffusion`` say.

    Raises:
        CheckpointError: no such folder, weights that do not fit its configuration, or an encoder
            that cannot be had.
        ValueError: as :func:`accelerate`.
    """
    policy, before, after = opened(folder, device)
    options = as_saved(policy, {"sampler": sampler, **options})
    return accelerate(policy, **options), before, after


def opened(folder: str | Path, device: str | None = None) -> tuple[Any, Any, Any]:
    """:func:`load`, with LeRobot's own loop."""
    if device is not None:
        usable_device(device)
    with tempfile.TemporaryDirectory() as spare, own_loops():
        found = renewed(downloaded(folder), spare)
        policy = _policy(found, device)
        before, after = _saved_processors(policy.config, found)
    return policy, before, after


def downloaded(folder: str | Path, revision: str | None = None, **hub: Any) -> Path:
    """The folder itself, or where the files of a repository of this name are now.

    Args:
        revision: of the repository, a branch, tag or commit; None is its main one. hub: more that
            ``snapshot_download`` takes.
    """
    path = Path(folder)
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors"]
        made = snapshot_download(str(folder), revision=revision, allow_patterns=patterns, **hub)
        return Path(made)
    except Exception as error:  # of many kinds: no network, no such repository, no such name
        raise CheckpointError(
            f"{folder} is neither a folder nor a repository on the Hub that can be reached"
            + (f" at revision {revision}" if revision else "")
            + f" ({type(error).__name__})"
        ) from error


def renewed(folder: str | Path, into: str | Path) -> Path:
    """A folder that the installed LeRobot reads: this one as it is, or else ``into``, where it is
    written with processor files and without what this release does not know.

    Raises:
        CheckpointError: a file is missing or damaged, of a type or with a setting that this LeRobot
            does not know, or there are no statistics to normalize with.
    """
    folder, into = Path(folder), Path(into)
    values = _read_config(folder)
    known = _known_values(values, folder)
    old = [name for name in shapes_of(folder) if name.startswith(_NORMALIZERS)]
    without = [name for name in PROCESSORS if not (folder / name).is_file()]
    if known == values and not old and not without:
        return folder
    into.mkdir(parents=True, exist_ok=True)
    (into / CONFIG).write_text(json.dumps(known, indent=4), encoding="utf-8")
    weights = load_file(folder / WEIGHTS) if old else {}
    if without:
        _write_processors(folder, into, weights)
    else:
        for path in folder.glob("policy_*processor*"):
            shutil.copy(path, into / path.name)
    if old:
        rest = {name: value for name, value in weights.items() if name not in old}
        save_file(rest, into / WEIGHTS, metadata={"format": "pt"})
    else:
        (into / WEIGHTS).unlink(missing_ok=True)
        (into / WEIGHTS).symlink_to((folder / WEIGHTS).resolve())
    return into


def settings(folder: str | Path) -> dict[str, Any]:
    """A folder's configuration, without what the installed LeRobot does not know and is off.

    Raises:
        CheckpointError: as for :func:`renewed`.
    """
    return _known_values(_read_config(Path(folder)), Path(folder))


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        assert isinstance(values["type"], str)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} holds no {CONFIG}: expected a policy's folder") from None
    except (OSError, ValueError, LookupError, TypeError, AssertionError) as error:
        raise CheckpointError(
            f"{folder / CONFIG} is damaged, or from before LeRobot 0.2: expected an object with a "
            "'type'"
        ) from error
    return values


def _adapter(folder: Path) -> CheckpointError:
    return CheckpointError(
        f"{folder} holds a PEFT adapter: expected a policy with weights of its own; merge the "
        "adapter into its policy first (merge_and_unload of peft)"
    )


def _known_values(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Without settings that this LeRobot does not know and that are off anyway."""
    import lerobot.policies  # noqa: F401  # registers their types
    from lerobot.configs.policies import PreTrainedConfig

    import asd_policy.integrations.lerobot.configuration_asd_diffusion  # noqa: F401  # ours, too

    kind, release = values["type"], ".".join(str(part) for part in check_version())
    if values.get("use_peft"):
        raise _adapter(folder)
    try:
        known = {field.name for field in fields(PreTrainedConfig.get_choice_class(kind))}
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{folder} holds a policy of the type {kind!r}, which LeRobot {release} has not: "
            f"expected one of {', '.join(sorted(PreTrainedConfig.get_known_choices()))}"
        ) from error
    unknown = values.keys() - known - {"type"}
    wanted = {k: values[k] for k in sorted(unknown - _TRAINING) if values[k] not in (None, False)}
    if wanted:
        listed = ", ".join(f"{name}={value!r}" for name, value in wanted.items())
        raise CheckpointError(
            f"{folder / CONFIG} sets {listed}, which LeRobot {release} does not know: expected a "
            "folder of this release or an older one; a newer LeRobot reads it"
        )
    return {name: value for name, value in values.items() if name not in unknown}


def shapes_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """Of every tensor in a folder's weights; their header alone is read."""
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        if (folder / "adapter_config.json").exists():
            raise _adapter(folder) from error
        raise CheckpointError(f"{folder / WEIGHTS} is missing or damaged: {error}") from error


def _write_processors(folder: Path, into: Path, weights: dict[str, Tensor]) -> None:
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(into)
    statistics: dict[str, dict[str, Tensor]] = {}
    for feature, kind in (config.input_features | config.output_features).items():
        if config.normalization_mapping.get(kind.type, "IDENTITY") == "IDENTITY":
            continue  # neither needs any
        for start in _NORMALIZERS:
            start += f"buffer_{feature.replace('.', '_')}."
            found = {k[len(start) :]: v for k, v in weights.items() if k.startswith(start)}
            statistics.setdefault(feature, {}).update(found)
    missing = [name for name, values in statistics.items() if not values]
    infinite = [
        name
        for name, values in statistics.items()
        if not all(bool(value.isfinite().all()) for value in values.values())
    ]
    if missing or infinite:
        without = next(name for name in PROCESSORS if not (folder / name).exists())
        what = f"infinite ones of {', '.join(infinite)}" * bool(infinite)
        what = what or f"none of {', '.join(missing)} in its weights"
        raise CheckpointError(
            f"{folder} has no {without}, and no statistics to make one of: found {what}"
        )
    for pipeline in make_pre_post_processors(config, dataset_stats=statistics):
        pipeline.save_pretrained(into)


def _policy(folder: Path, device: str | None) -> Any:
    import draccus
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class

    try:
        config = PreTrainedConfig.from_pretrained(folder)
    except draccus.utils.DraccusException as error:
        raise CheckpointError(
            f"{folder / CONFIG} holds what LeRobot refuses: {error} ({error.__cause__})"
        ) from error
    config.device = device or config.device
    kind = get_policy_class(config.type)
    return built(config, folder, lambda: kind.from_pretrained(folder, config=config))


def built(config: Any, folder: str | Path, load: Callable[[], Any]) -> Any:
    """What ``load`` returns, a policy of these settings with this folder's weights.

    Raises:
        CheckpointError: weights that do not fit the settings, or an encoder or a noise schedule
            that cannot be had.
    """
    from lerobot.policies.factory import get_policy_class

    try:
        with _as_saved(config, Path(folder)):
            policy = load()
    except OSError as error:
        raise CheckpointError(
            f"an encoder of {folder} could not be had ({str(error).splitlines()[0]}); load it once "
            "where the Hub can be reached, and copy the cache ($HF_HOME) from there"
        ) from error
    except NotImplementedError as error:  # diffusers', of a beta_schedule
        raise CheckpointError(f"{folder} asks for what cannot be had: {error}") from error
    except RuntimeError:
        with _as_saved(config, Path(folder)):
            check_weights(get_policy_class(config.type)(config), folder)
        raise
    check_weights(policy, folder)
    if _may_be_compiled(config):
        unet = getattr(policy.diffusion.unet, "_orig_mod", policy.diffusion.unet)
        compiled = config.compile_model
        policy.diffusion.unet = torch.compile(unet, mode=config.compile_mode) if compiled else unet
    return policy


@contextmanager
def _as_saved(config: Any, folder: Path) -> Iterator[None]:
    """Settings to load a folder's weights with: an encoder's are there, and need no download; and
    a compiled U-Net gives them other names, by which LeRobot would not find those of another, and
    would leave it random."""
    loading: dict[str, Any] = {}
    if getattr(config, "pretrained_backbone_weights", None) is not None:
        loading["pretrained_backbone_weights"] = None
    if _may_be_compiled(config):
        loading["compile_model"] = any("._orig_mod." in name for name in shapes_of(folder))
    asked = {name: getattr(config, name) for name in loading}
    vars(config).update(loading)
    try:
        yield
    finally:
        vars(config).update(asked)


def _may_be_compiled(config: Any) -> bool:
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig

    return isinstance(config, DiffusionConfig) and hasattr(config, "compile_model")


def check_weights(policy: Any, folder: str | Path) -> None:
    """Raise a CheckpointError with one table unless a folder's weights are all of a policy's, and
    of its sizes. (LeRobot only logs those that are missing, and leaves them random.)"""
    found, state = shapes_of(Path(folder)), policy.state_dict()
    kept = {value.data_ptr() for name, value in state.items() if name in found}
    expected = {
        name: tuple(value.shape)
        for name, value in state.items()
        if name in found or value.data_ptr() not in kept  # a tensor of two names is saved once
    }
    table = difference_table(expected, found)
    if table:
        raise CheckpointError(f"the weights in {folder} contradict its {CONFIG}:\n{table}")


def _saved_processors(config: Any, folder: Path) -> tuple[Any, Any]:
    from lerobot.policies.factory import make_pre_post_processors

    try:
        steps = json.loads((folder / PROCESSORS[0]).read_text(encoding="utf-8")).get("steps", [])
        moved = any(step.get("registry_name") == "device_processor" for step in steps)
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{folder / PROCESSORS[0]} is damaged: {error}") from error
    overrides = {"device_processor": {"device": str(config.device)}} if moved else {}
    try:
        made: tuple[Any, Any] = make_pre_post_processors(
            config, pretrained_path=str(folder), preprocessor_overrides=overrides
        )
    except (
        ValueError, LookupError, TypeError, ImportError, OSError, RuntimeError, SafetensorError
    ) as error:  # fmt: skip
        raise CheckpointError(f"the processors in {folder} cannot be loaded: {error}") from error
    return made
