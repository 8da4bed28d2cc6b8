"""``asd_diffusion``, a policy type of LeRobot: its diffusion, with chunks sampled by this package.

    lerobot-eval --policy.path=CKPT --policy.type=asd_diffusion --policy.sampler=asd …

The distribution ``lerobot_policy_asd``, which LeRobot's commands find by its name, calls
:func:`register`; so does ``python -m asd_policy.integrations.lerobot``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from lerobot.configs import parser
from lerobot.configs.policies import PreTrainedConfig

from asd_policy.integrations.lerobot.configuration_asd_diffusion import NAME, AsdDiffusionConfig
from asd_policy.integrations.lerobot.loading import policy_in_file


def register() -> None:
    """Make the type known, and have LeRobot's commands take it beside ``--policy.path``.

    LeRobot itself refuses a type beside a path, or leaves it out where a file of settings has both,
    because the type is in the checkpoint. This one reads checkpoints of type ``diffusion`` as well
    as its own, so that here the option says something; two functions are replaced, and do as ever
    without the type ``asd_diffusion``. A second call changes nothing.
    """
    filter_path_args = parser.filter_path_args
    if hasattr(filter_path_args, "_asd_policy"):
        return
    own_config = PreTrainedConfig.from_pretrained.__func__

    def without_our_type(fields: str | list[str], args: Sequence[str] | None = None) -> list[str]:
        words = list(args or [])
        if parser.get_path_arg("policy", words) and parser.get_type_arg("policy", words) == NAME:
            words = parser.filter_arg("policy.type", words)
        kept: list[str] = filter_path_args(fields, words)
        return kept

    def from_pretrained(cls: Any, pretrained_name_or_path: Any, **kwargs: Any) -> Any:
        if cls is PreTrainedConfig and _type_asked() == NAME:
            return AsdDiffusionConfig.from_pretrained(pretrained_name_or_path, **kwargs)
        return own_config(cls, pretrained_name_or_path, **kwargs)

    without_our_type._asd_policy = True  # type: ignore[attr-defined]
    parser.filter_path_args = without_our_type
    PreTrainedConfig.from_pretrained = classmethod(from_pretrained)


def _type_asked() -> str | None:
    in_file = policy_in_file(sys.argv[1:])
    kind: str | None = parser.get_type_arg("policy") or in_file.get("type")
    return kind
