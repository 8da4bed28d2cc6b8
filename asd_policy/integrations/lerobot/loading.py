"""Policies, accelerated as LeRobot's commands load them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from lerobot.policies import pretrained

from asd_policy.engine import ENGINES
from asd_policy.errors import CheckpointError
from asd_policy.integrations.lerobot.accelerating import accelerate
from asd_policy.networks.inference import PRECISIONS
from asd_policy.samplers.config import SamplerConfig
from asd_policy.schedule import check_choice


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse what no policy could be accelerated with, before anything is loaded.

    Args:
        options: keywords of ``accelerate``.

    Raises:
        ValueError: as for ``accelerate``.
    """
    named = {name: options[name] for name in ("window", "steps") if name in options}
    sampler = options.get("sampler", "auto")
    SamplerConfig.named("asd" if sampler == "auto" else sampler, **named)
    check_choice("engine", options.get("engine", "auto"), ENGINES)
    check_choice("precision", options.get("precision", "fp32"), PRECISIONS)


def check_checkpoint(path: str) -> None:
    """Refuse a path that is no checkpoint; a repository of the Hub is LeRobot's affair.

    Raises:
        CheckpointError: a folder without settings, or a path that no repository can have.
    """
    is_repository = not Path(path).exists() and path.count("/") <= 1 and path[0] not in "/.~"
    if not is_repository and not (Path(path) / "config.json").is_file():
        raise CheckpointError(
            f"expected a folder with a policy's config.json and model.safetensors (LeRobot's "
            f"…/checkpoints/last/pretrained_model), got {path}"
        )


@contextmanager
def replaced(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    """Another value for a module's name, for a while."""
    own = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, own)


def prepared(policy: Any, options: Mapping[str, Any]) -> Any:
    """The same policy, accelerated where there are options, with its slow first things done."""
    return accelerate(policy, warmup=True, **options) if options else policy


def loader(load: Callable[..., Any], options: Mapping[str, Any]) -> Callable[..., Any]:
    """``load``, of LeRobot's, returning policies that are accelerated."""

    def load_accelerated(*args: Any, **kwargs: Any) -> Any:
        with said_in_a_sentence():
            policy = load(*args, **kwargs)
        return prepared(policy, options)

    return load_accelerated


@contextmanager
def said_in_a_sentence() -> Iterator[None]:
    """Weights that are not those of the settings, and downloads that fail, as one sentence.

    Raises:
        CheckpointError: in their place. Weights that a checkpoint lacks too, of which LeRobot only
            warns, and acts with random ones.
    """
    try:
        with replaced(pretrained, "log_model_loading_keys", _refuse_missing):
            yield
    except RuntimeError as error:
        if "size mismatch" not in str(error) and "loading state_dict" not in str(error):
            raise
        line = next((text for text in str(error).splitlines() if "mismatch" in text), str(error))
        raise CheckpointError(
            f"config.json is not that of model.safetensors: {line.strip()} Take both from the same "
            "checkpoint, and leave out --policy options that size the network"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"LeRobot could not load the policy ({' '.join(str(error).split())}): where an encoder "
            "would be downloaded and there is no network, add "
            "--policy.pretrained_backbone_weights=null (the checkpoint has its weights), or load "
            "it once with a network"
        ) from error


def _refuse_missing(missing: Iterable[str], unexpected: Iterable[str]) -> None:
    names = sorted(missing)
    if names:
        raise CheckpointError(
            f"model.safetensors lacks {len(names)} of the weights that config.json asks for "
            f"({names[0]}, …): take both from the same checkpoint"
        )
