"""Settings of the policy type ``asd_diffusion``. LeRobot finds its modules by their names."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import draccus
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig

from asd_policy.errors import InputError
from asd_policy.integrations.lerobot.loading import check_options

NAME = "asd_diffusion"
_read = PreTrainedConfig.from_pretrained.__func__  # LeRobot's own, by the type that a file names


@PreTrainedConfig.register_subclass(NAME)
@dataclass
class AsdDiffusionConfig(DiffusionConfig):
    """LeRobot's ``DiffusionConfig``, and how chunks are sampled.

    Args:
        sampler: "auto" ("asd" where the checkpoint samples by DDPM; one that samples by DDIM keeps
            its chain), or a name that ``accelerate`` takes: asd, ddpm, ddim …
        window: of "asd", steps guessed ahead; by default it is chosen.
        engine, precision: as for ``accelerate``.
    """

    sampler: str = "auto"
    window: int | None = None
    engine: str = "auto"
    precision: str = "fp32"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self.sampling())

    def sampling(self) -> dict[str, Any]:
        """Keywords of ``accelerate``."""
        made = {name: getattr(self, name) for name in ("sampler", "engine", "precision")}
        return made if self.window is None else made | {"window": self.window}

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: str | Path, **kwargs: Any) -> Any:
        """The settings of a checkpoint, of this type or of LeRobot's ``diffusion``.

        Args:
            pretrained_name_or_path, kwargs: as for LeRobot's ``PreTrainedConfig``;
                ``cli_overrides`` are words such as ``--sampler=asd``.

        Raises:
            ValueError: a checkpoint of another type, or an option that cannot be used.
        """
        overrides = kwargs.pop("cli_overrides", None) or []
        found = _read(PreTrainedConfig, pretrained_name_or_path, **kwargs)
        if not isinstance(found, DiffusionConfig):
            raise InputError(
                f"{NAME} runs checkpoints of type diffusion; {pretrained_name_or_path} is of type "
                f"{found.type}: leave --policy.type out"
            )
        settings = draccus.encode(found)
        settings.pop("type", None)
        with tempfile.TemporaryDirectory() as folder, draccus.config_type("json"):
            file = Path(folder) / "config.json"
            file.write_text(json.dumps(settings), encoding="utf-8")
            try:
                return draccus.parse(cls, file, args=overrides)
            except draccus.utils.ParsingError as error:
                if isinstance(error.__cause__, InputError):  # says what is wrong
                    raise error.__cause__ from None
                raise
