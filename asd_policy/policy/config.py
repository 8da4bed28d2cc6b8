"""What a policy is made of, apart from its weights: the content of a checkpoint's card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from asd_policy.ambient import untouched
from asd_policy.errors import InputError, check_names, whole_from
from asd_policy.networks import ConditionalUnet1D, TransformerForDiffusion, TransformerSizes
from asd_policy.schedule import check_choice

_SIZES = (
    "action_dim", "obs_horizon", "action_horizon", "pred_horizon", "step_embed_dim", "kernel_size",
    "n_groups",
)  # fmt: skip
_OF_A_UNET = (
    "down_dims", "step_embed_dim", "kernel_size", "n_groups", "cond_predict_scale",
    "final_n_groups",
)  # fmt: skip
UNET, TRANSFORMER = ConditionalUnet1D.__name__, TransformerForDiffusion.__name__


@dataclass(frozen=True)
class PolicyConfig:
    """Architecture and horizons of a diffusion policy.

    Attributes:
        observation_keys: key → dimension, in the order in which they are concatenated.
        action_dim: numbers in one action.
        obs_horizon: To, observations that condition a chunk.
        action_horizon: Ta, actions executed of each chunk.
        pred_horizon: Tp, actions in a chunk.
        down_dims, step_embed_dim, kernel_size, n_groups, cond_predict_scale, final_n_groups: of the
            ``ConditionalUnet1D``.
        quaternions: first columns, in the concatenated observation, of the quaternions (x, y, z,
            w) that the network sees as rotation matrices.
        transformer: sizes of a ``TransformerForDiffusion``, which then is the network; None for
            the U-Net.
    """

    observation_keys: Mapping[str, int]
    action_dim: int
    obs_horizon: int = 2
    action_horizon: int = 8
    pred_horizon: int = 16
    down_dims: tuple[int, ...] = (256, 512, 1024)
    step_embed_dim: int = 256
    kernel_size: int = 5
    n_groups: int = 8
    quaternions: tuple[int, ...] = ()
    architecture: str = field(default=UNET, init=False)
    cond_predict_scale: bool = True
    final_n_groups: int | None = None
    transformer: TransformerSizes | None = None

    def __post_init__(self) -> None:
        self._check_kinds()
        if self.obs_horizon - 1 + self.action_horizon > self.pred_horizon:
            raise InputError(
                "the chunk is too short: obs_horizon − 1 + action_horizon must be at most "
                f"pred_horizon, got {self.horizons}"
            )
        if self.transformer is None:
            self._check_unet()
        else:
            self._forget_unet()
        starts = (*sorted(self.quaternions), self.observation_dim)
        if any(later - earlier < 4 for earlier, later in pairwise(starts)) or starts[0] < 0:
            raise InputError(
                f"expected the first columns of quaternions among {self.observation_dim} "
                f"observed numbers, 4 for each, got {self.quaternions}"
            )

    def _check_unet(self) -> None:
        multiple = 2 ** (len(self.down_dims) - 1)
        if self.pred_horizon % multiple:
            raise InputError(
                f"pred_horizon must be a multiple of {multiple} for {len(self.down_dims)} "
                f"resolutions, got {self.pred_horizon}"
            )

    def _forget_unet(self) -> None:
        """A transformer's configuration is the same whatever was said of a U-Net."""
        defaults = {each.name: each.default for each in fields(self)}
        for name in _OF_A_UNET:
            object.__setattr__(self, name, defaults[name])
        object.__setattr__(self, "architecture", TRANSFORMER)

    def _check_kinds(self) -> None:
        """Whole numbers of any kind become ints, which JSON knows; anything else is refused."""
        if not isinstance(self.observation_keys, Mapping):
            raise InputError(
                f"observation_keys must be a mapping, got {self.observation_keys!r:.80}"
            )
        for key, dim in self.observation_keys.items():
            whole_from(1, f"the dimension of observation {key!r}", dim)
        for name in _SIZES:
            object.__setattr__(self, name, whole_from(1, name, getattr(self, name)))
        for name, least in (("down_dims", 1), ("quaternions", 0)):
            values = tuple(whole_from(least, f"each of {name}", v) for v in getattr(self, name))
            object.__setattr__(self, name, values)
        if self.final_n_groups is not None:
            whole_from(1, "final_n_groups", self.final_n_groups)
        check_choice("cond_predict_scale", self.cond_predict_scale, (False, True))
        if not isinstance(self.transformer, TransformerSizes | None):
            raise InputError(
                f"transformer must be TransformerSizes or None, got {self.transformer!r:.80}"
            )

    @property
    def horizons(self) -> tuple[int, int, int]:
        """(To, Ta, Tp)."""
        return self.obs_horizon, self.action_horizon, self.pred_horizon

    @property
    def observation_dim(self) -> int:
        return sum(self.observation_keys.values())

    @property
    def condition_dim(self) -> int:
        """Numbers that the network is given of the To observations."""
        return self.obs_horizon * (self.observation_dim + 5 * len(self.quaternions))

    @property
    def chunk_shape(self) -> tuple[int, int]:
        return self.pred_horizon, self.action_dim

    def build_network(self, device: torch.device | str = "cpu") -> nn.Module:
        """A network with fresh weights, in float32 and trainable whatever PyTorch is set to."""
        with untouched(), torch.device(device):
            if self.transformer is not None:
                return TransformerForDiffusion(
                    self.action_dim,
                    self.condition_dim // self.obs_horizon,
                    self.pred_horizon,
                    self.obs_horizon,
                    self.transformer,
                )
            return ConditionalUnet1D(
                self.action_dim,
                self.condition_dim,
                self.step_embed_dim,
                self.down_dims,
                self.kernel_size,
                self.n_groups,
                self.cond_predict_scale,
                self.final_n_groups,
            )

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        values["observation_keys"] = [
            {"name": name, "shape": [dim]} for name, dim in self.observation_keys.items()
        ]
        values["down_dims"] = list(self.down_dims)
        values["quaternions"] = list(self.quaternions)
        absent = {"cond_predict_scale": True, "final_n_groups": None, "transformer": None}
        for name, default in absent.items():
            if values[name] == default:  # as in cards before there was a choice
                del values[name]
        for name in _OF_A_UNET if self.transformer is not None else ():
            values.pop(name, None)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PolicyConfig:
        """Inverse of :meth:`to_dict`. Raises ValueError for another architecture."""
        rest = dict(values)
        architecture = rest.pop("architecture", None)
        check_choice("architecture", architecture, (UNET, TRANSFORMER))
        others = _OF_A_UNET if architecture == TRANSFORMER else ("transformer",)
        names = [each.name for each in fields(cls) if each.name not in others]
        check_names("entries of a policy", rest, names)
        keys = {item["name"]: int(item["shape"][0]) for item in rest.pop("observation_keys")}
        if architecture == TRANSFORMER:
            rest["transformer"] = _sizes(rest.pop("transformer", None))
        else:
            rest["down_dims"] = tuple(rest["down_dims"])
        rest["quaternions"] = tuple(rest.get("quaternions", ()))  # none, before there was a choice
        return cls(keys, rest.pop("action_dim"), **rest)


def _sizes(values: Any) -> TransformerSizes:
    """All of them: weights do not tell how many heads there are, or which masks."""
    wanted = {each.name for each in fields(TransformerSizes)}
    if not isinstance(values, Mapping) or values.keys() != wanted:
        raise InputError(f"transformer must be a mapping of {sorted(wanted)}, got {values!r:.200}")
    return TransformerSizes(**values)
