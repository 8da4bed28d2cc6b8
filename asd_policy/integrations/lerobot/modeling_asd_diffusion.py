"""The policy type ``asd_diffusion``. LeRobot finds its modules by their names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from torch import Tensor

from asd_policy.errors import InputError
from asd_policy.integrations.lerobot.accelerating import accelerate, making_own_loops
from asd_policy.integrations.lerobot.configuration_asd_diffusion import NAME, AsdDiffusionConfig
from asd_policy.integrations.lerobot.folders import built, downloaded
from asd_policy.integrations.lerobot.history import remember

_HUB = ("force_download", "proxies", "token", "cache_dir", "local_files_only", "revision")


class AsdDiffusionPolicy(DiffusionPolicy):
    """LeRobot's ``DiffusionPolicy``, accelerated, with the same weights.

    ``predict_action_chunk`` takes single observations too, and keeps their history.
    """

    config_class = AsdDiffusionConfig
    name = NAME

    def __init__(self, config: AsdDiffusionConfig, **kwargs: Any) -> None:
        if not isinstance(config, AsdDiffusionConfig):
            raise InputError(
                f"expected an AsdDiffusionConfig, got a {type(config).__name__}; "
                "AsdDiffusionPolicy.from_pretrained reads a checkpoint of type diffusion"
            )
        super().__init__(config, **kwargs)
        if not making_own_loops():
            accelerate(self, device=config.device, **config.sampling())

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: AsdDiffusionConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """A checkpoint of this type or of LeRobot's ``diffusion``, its weights checked.

        Raises:
            CheckpointError: as for ``folders.built``, or no such checkpoint.
        """
        hub = {name: kwargs.pop(name) for name in _HUB if name in kwargs}
        if config is None:
            config = AsdDiffusionConfig.from_pretrained(pretrained_name_or_path, **hub)
        load, given = super().from_pretrained, {k: v for k, v in hub.items() if v is not None}
        folder = downloaded(pretrained_name_or_path, **given)
        return built(config, folder, lambda: load(folder, config=config, **kwargs))

    def reset(self) -> None:
        """Forget what was seen; where a first chunk would do slow things first (compile, capture,
        time the network, teach drafts) while the robot waits, also do them now."""
        super().reset()
        drawn_by = vars(self.diffusion).get("conditional_sample")  # none yet while it is made
        if drawn_by is not None and not self.training and drawn_by.cold:
            drawn_by.warm()

    def predict_action_chunk(self, batch: Mapping[str, Any], noise: Tensor | None = None) -> Tensor:
        """(B, n_action_steps, action_dim) actions, from the current one on."""
        chunk: Tensor = super().predict_action_chunk(remember(self, batch), noise=noise)
        return chunk
