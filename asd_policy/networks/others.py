"""The U-Net of Chi et al., of robomimic or of LeRobot, in their own class: read layer by layer.

Weights alone do not say how many groups a norm has (the published classes have 8 in their last
block, whatever ``n_groups`` is), nor which activation follows it. The module does, and one call
tells whether all was read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from asd_policy.ambient import own_precision
from asd_policy.errors import InputError
from asd_policy.networks.unet1d import ConditionalUnet1D
from asd_policy.networks.weights import hooks_of

_PARTS = ("diffusion_step_encoder", "down_modules", "mid_modules", "up_modules", "final_conv")
# LeRobot's class has the same layers under other names: (what it calls them, what we do).
_RENAMED = (
    (re.compile(r"\.conv1(?=\.|$)"), ".blocks.0"),
    (re.compile(r"\.conv2(?=\.|$)"), ".blocks.1"),
    (re.compile(r"^((?:down|up)_modules\.\d+\.2)(?=\.(?:weight|bias)$)"), r"\1.conv"),
)


def own_name(name: str) -> str:
    """What a layer or parameter of such a network is called in ``ConditionalUnet1D``."""
    for theirs, ours in _RENAMED:
        name = theirs.sub(ours, name)
    return name


def sizes_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of the ``ConditionalUnet1D`` that weights are of; but for its groups, which they
    do not tell. KeyError or IndexError where they are of another network."""
    embed = weights["diffusion_step_encoder.1.weight"].shape[1]
    name = "down_modules.{}.0.blocks.0.block.0.weight"
    levels = sum(bool(re.fullmatch(name.format(r"\d+").replace(".", r"\."), k)) for k in weights)
    first = [weights[name.format(i)] for i in range(max(1, levels))]
    film = weights["down_modules.0.0.cond_encoder.1.weight"]
    return {
        "input_dim": first[0].shape[1],
        "global_cond_dim": film.shape[1] - embed,
        "diffusion_step_embed_dim": embed,
        "down_dims": tuple(level.shape[0] for level in first),
        "kernel_size": first[0].shape[2],
        "cond_predict_scale": film.shape[0] != first[0].shape[0],
    }


class OthersUnet1D(nn.Module):
    """A U-Net of another package, to be sampled as one of ours: ``network(x, timesteps, cond)``.

    ``prepare`` and policies fold it as they do a ``ConditionalUnet1D``, with its own numbers of
    groups, kernel size and modulation (scale and shift, or shift only). It stays where it is and as
    it is: it may be trained on.

    Args:
        source: ``source(x, timesteps, global_cond=cond)``, with the parameter names of Chi et al.
            or of LeRobot; also what ``torch.compile`` made of it, which is read, not compiled.

    Raises:
        ValueError: another construction; what differs is named.
    """

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.source = source
        unet = self.as_unet()
        self.input_dim, self.global_cond_dim = unet.input_dim, unet.global_cond_dim
        self.length_multiple = unet.length_multiple
        self._compare(unet)

    def forward(self, x: Tensor, timesteps: Tensor, cond: Tensor | None = None) -> Tensor:
        """As :meth:`ConditionalUnet1D.forward`, computed by the source."""
        return cast(Tensor, self.source(x, timesteps, global_cond=cond))

    @property
    def _plain(self) -> nn.Module:
        """The source before ``torch.compile``."""
        return cast(nn.Module, getattr(self.source, "_orig_mod", self.source))

    def as_unet(self) -> ConditionalUnet1D:
        """The same function in our class, of the same parameters (copies where they are shorter
        than float32)."""
        source = self._plain
        missing = [
            part for part in _PARTS if not isinstance(getattr(source, part, None), nn.Module)
        ]
        if missing or getattr(source, "local_cond_encoder", None) is not None:
            what = f"without {', '.join(missing)}" if missing else "with local conditions"
            raise InputError(
                "expected a U-Net of the construction of Chi et al.'s ConditionalUnet1D, got a "
                f"{type(source).__name__} {what}"
            )
        for name, module in source.named_modules():
            if hooks_of(module):  # which a copy would not run
                raise InputError(
                    f"the U-Net's {name or 'network'!r} has a hook or a forward pass of its own; "
                    "expected none"
                )
        weights = {own_name(k): v for k, v in source.state_dict(keep_vars=True).items()}
        with torch.device("meta"):
            unet = self._empty(weights)
        self._take_norms(unet)
        _share(unet, weights)
        return unet

    def _empty(self, weights: Mapping[str, Tensor]) -> ConditionalUnet1D:
        """One of these sizes; each name and shape is the source's."""
        try:
            unet = ConditionalUnet1D(**sizes_of(weights), n_groups=1)
        except (LookupError, RuntimeError) as error:
            raise InputError(f"the U-Net's weights are of another construction: {error}") from error
        expected, got = (
            {(name, tuple(value.shape)) for name, value in state.items()}
            for state in (unet.state_dict(), weights)
        )
        differ = [f"{name} {shape}" for name, shape in sorted(expected ^ got)]
        if differ:
            listed = ", ".join(differ[:6])
            raise InputError(f"the U-Net's weights are of another construction: {listed}")
        return unet

    def _take_norms(self, unet: ConditionalUnet1D) -> None:
        theirs = {own_name(name): module for name, module in self._plain.named_modules()}
        for name, norm in unet.named_modules():
            if isinstance(norm, nn.GroupNorm):
                found = theirs.get(name)
                if not isinstance(found, nn.GroupNorm):
                    raise InputError(
                        f"the U-Net's {name!r} is a {type(found).__name__}; expected a GroupNorm"
                    )
                norm.num_groups, norm.eps = found.num_groups, found.eps

    @torch.no_grad()
    @own_precision(networks_too=True)
    def _compare(self, unet: ConditionalUnet1D) -> None:
        """One call of each: activations and the order of operations cannot be read."""
        source = self._plain
        like = next(source.parameters())
        sizes = (2, 2 * self.length_multiple, self.input_dim), (2, self.global_cond_dim)
        x, cond = (
            torch.arange(float(torch.Size(size).numel()), device=like.device).sin().view(size)
            for size in sizes
        )
        timesteps = torch.tensor([3, 40], device=like.device)
        given = x, timesteps, cond if self.global_cond_dim else None
        try:
            *inputs, seen = (
                v.to(like.dtype) if v is not None and v.is_floating_point() else v for v in given
            )
            theirs = source(*inputs, global_cond=seen).float()
        except (TypeError, RuntimeError, ValueError) as error:
            raise InputError(
                f"the U-Net must take (x, timesteps, global_cond=…), and failed: {error}"
            ) from error
        own = next(unet.parameters()).dtype
        ours = unet(*(v.to(own) if v is not None and v.is_floating_point() else v for v in given))
        short = like.dtype in (torch.float16, torch.bfloat16)
        worst = float((ours.float() - theirs).abs().max())
        if not worst <= (0.1 if short else 2e-3) * float(theirs.abs().max()):
            raise InputError(
                "the U-Net computes something else than Chi et al.'s with these weights (an "
                f"activation, or its conditioning): one call differs by {worst:.2g}"
            )


def _share(unet: ConditionalUnet1D, weights: Mapping[str, Tensor]) -> None:
    """The very parameters, so that they are trained on and their gradients stay wanted."""
    for name, value in weights.items():
        path, _, leaf = name.rpartition(".")
        if value.dtype not in (torch.float32, torch.float64):
            value = nn.Parameter(value.detach().float(), requires_grad=False)
        unet.get_submodule(path)._parameters[leaf] = cast(nn.Parameter, value)
