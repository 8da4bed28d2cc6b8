"""Policies, accelerated as LeRobot's commands load them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml  # type: ignore[import-untyped]  # LeRobot's parser of settings needs it
from lerobot.configs import parser

from asd_policy.engine import ENGINES
from asd_policy.integrations.lerobot.accelerating import accelerate, as_saved, own_loops
from asd_policy.integrations.lerobot.folders import built, downloaded, renewed
from asd_policy.networks.inference import PRECISIONS
from asd_policy.samplers.config import SamplerConfig
from asd_policy.schedule import check_choice

_PATH, _REVISION = "policy.path", "policy.pretrained_revision"
_FILES = ".json", ".yaml", ".yml"  # those of settings in which LeRobot looks for a path


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


def policy_in_file(words: Sequence[str]) -> dict[str, Any]:
    """What a command's file of settings (``--config_path``) says of a policy whose path it gives;
    else {}. (Of a file that cannot be read, LeRobot says so.)"""
    name = parser.parse_arg("config_path", words)
    if not name or Path(name).suffix.lower() not in _FILES:
        return {}
    try:
        found = yaml.safe_load(Path(name).read_text(encoding="utf-8"))["policy"]
        return dict(found) if found["path"] else {}
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        return {}


@contextmanager
def readable(words: Sequence[str]) -> Iterator[list[str]]:
    """A command's words, the checkpoint that they name in a form that this LeRobot reads.

    Raises:
        CheckpointError: as for ``folders.renewed``.
    """
    in_file = policy_in_file(words)
    path = parser.parse_arg(_PATH, words) or in_file.get("path")
    if not path:
        yield list(words)
        return
    revision = parser.parse_arg(_REVISION, words) or in_file.get("pretrained_revision")
    with tempfile.TemporaryDirectory() as spare:
        found = renewed(downloaded(path, revision), spare)
        if found == Path(path):
            yield list(words)
            return
        yield [*parser.filter_arg(_PATH, words), f"--{_PATH}={found}"]


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
    return accelerate(policy, warmup=True, **as_saved(policy, options)) if options else policy


def loader(load: Callable[..., Any], options: Mapping[str, Any]) -> Callable[..., Any]:
    """``load`` of LeRobot's, a function of a policy's settings, returning accelerated policies."""

    @own_loops()
    def load_accelerated(*args: Any, **kwargs: Any) -> Any:
        config = args[0] if args else kwargs["cfg"]
        if not config.pretrained_path:  # made anew
            return prepared(load(*args, **kwargs), options)
        revision = getattr(config, "pretrained_revision", None)  # from LeRobot 0.6 on
        folder = downloaded(config.pretrained_path, revision)
        policy = built(config, folder, lambda: load(*args, **kwargs))
        return prepared(policy, options)

    return load_accelerated
