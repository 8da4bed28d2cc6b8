"""Networks of diffusers as denoisers: a few rows at a time, thresholded, or guided."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from asd_policy.errors import InputError, whole_from
from asd_policy.integrations.diffusers_memory import room_for


def dtype_of(network: nn.Module) -> torch.dtype:
    """Of the points that a network takes: its weights may be kept in another one, smaller than
    that in which they are used (``enable_layerwise_casting``), which diffusers' networks know."""
    told = getattr(network, "dtype", None)
    return told if isinstance(told, torch.dtype) else next(network.parameters()).dtype


def device_of(denoiser: nn.Module) -> torch.device:
    """Where a network runs: its weights may wait elsewhere until then (``enable_model_cpu_offload``
    and the like, by hooks of accelerate or diffusers).

    Raises:
        ValueError: no module, or one without weights.
    """
    weight = next(denoiser.parameters(), None) if isinstance(denoiser, nn.Module) else None
    if weight is None:
        raise InputError(
            "expected a denoiser with weights (a module), which say on what device it runs; got a "
            f"{type(denoiser).__name__}"
        )
    for module in denoiser.modules():
        found = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        hooks = getattr(module, "_diffusers_hook", None)
        group = getattr(hooks and hooks.get_hook("group_offloading"), "group", None)
        found = getattr(group, "onload_device", found)
        if found is not None:
            return torch.device(found)
    return weight.device


class Rows(nn.Module):
    """A network of diffusers as samplers call it, a few rows at a time."""

    def __init__(self, network: nn.Module, most: int | None) -> None:
        super().__init__()
        self.network = network
        self._most = None if most is None else whole_from(1, "rows_at_once", most)
        self._dtype = dtype_of(network)
        self.__qualname__ = type(network).__qualname__  # what engines call it in their errors

    def forward(self, x: Tensor, timesteps: Tensor, cond: Tensor | None = None) -> Tensor:
        most = self._most or len(x)
        cuts = [slice(i, i + most) for i in range(0, len(x), most)]
        conds = [None if cond is None else cond[cut] for cut in cuts]
        parts = [self._call(x[cut], timesteps[cut], c) for cut, c in zip(cuts, conds, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _call(self, x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
        given = x.to(self._dtype), timesteps
        less = f"rows_at_once={len(x) // 2} takes half of it"
        if len(x) == 1:
            less = "the network needs a larger device, or numbers of half precision"
        what = f"the network on {len(x)} rows of {tuple(x.shape[1:])} at once"
        with room_for(what, x.device, less):
            out = self.network(*given) if cond is None else self.network(*given, cond)
        return out if isinstance(out, Tensor) else out.sample


class Thresholded(nn.Module):
    """A denoiser that predicts clean samples x̂0 with dynamic thresholding (Saharia et al., 2022):
    those of a sample that are beyond the quantile s of its own are cut off there, and all are
    divided by s, which is 1 at least.

    That is a function of the point and its step alone, and so part of the target: what is sampled
    is exact for it.

    Args:
        network: predicts what the scheduler's ``prediction_type`` says. scheduler: a
            ``DDPMScheduler`` with ``thresholding``.
    """

    def __init__(self, network: nn.Module, scheduler: Any) -> None:
        super().__init__()
        config = scheduler.config
        self.__qualname__ = getattr(network, "__qualname__", type(network).__qualname__)
        self.network, self._kind = network, config.prediction_type
        self._quantile, self._most = config.dynamic_thresholding_ratio, config.sample_max_value
        self._kept = scheduler.alphas_cumprod  # ᾱ of the steps that it was trained with

    def forward(self, x: Tensor, timesteps: Tensor, cond: Tensor | None = None) -> Tensor:
        here = x.clone()  # the network may write into it
        given = (here, timesteps) if cond is None else (here, timesteps, cond)
        out = self.network(*given)
        out = out if isinstance(out, Tensor) else out.sample
        if out.shape != x.shape:  # else it would be stretched to it
            raise InputError(
                f"the network must return the shape it is given, {tuple(x.shape)}; got "
                f"{tuple(out.shape)}"
            )
        clean = self._clean(x, out.to(x), timesteps)
        sizes = clean.flatten(1).abs().float()
        most = torch.quantile(sizes, self._quantile, dim=1).clamp(1, self._most).to(x)
        most = most.view(-1, *[1] * (x.ndim - 1))
        return clean.clamp(-most, most) / most

    def _clean(self, x: Tensor, out: Tensor, timesteps: Tensor) -> Tensor:
        if self._kept.device != x.device:  # once: a copy from the host cannot be captured
            self._kept = self._kept.to(x.device)
        kept = self._kept[timesteps].to(x).view(-1, *[1] * (x.ndim - 1))
        if self._kind == "sample":
            return out
        if self._kind == "v_prediction":
            return kept.sqrt() * x - (1 - kept).sqrt() * out
        return (x - (1 - kept).sqrt() * out) / kept.sqrt()


class Guided(nn.Module):
    """A denoiser with classifier-free guidance (Ho and Salimans, 2022): both halves in one call.

    The guided prediction u + scale·(c − u) is part of the target, so that what is sampled from it
    is exact for it.

    Args:
        network: a ``UNet2DConditionModel``, called with ``encoder_hidden_states``; or, with
            ``argument="class_labels"``, a ``UNet2DModel`` or ``DiTTransformer2DModel`` of classes.
        scale: of the guidance; 1 is the conditional model alone.

    Its ``cond`` is (B, 2, …): of each sample the unconditional one, then its own. What a network
    says of its variance beside (a DiT's other half of channels) is left out, as by its pipeline.
    """

    def __init__(
        self, network: nn.Module, scale: float, argument: str = "encoder_hidden_states"
    ) -> None:
        super().__init__()
        self.network, self.scale, self.argument = network, scale, argument

    @property
    def dtype(self) -> torch.dtype:
        """Of the points that its network takes."""
        return dtype_of(self.network)

    def forward(self, x: Tensor, timesteps: Tensor, cond: Tensor | None = None) -> Tensor:
        if cond is None or cond.ndim < 2 or cond.shape[1] != 2:
            found = "none" if cond is None else f"one of shape {tuple(cond.shape)}"
            raise InputError(
                "guidance needs a cond of shape (B, 2, …), of each sample the unconditional one "
                f"and its own; got {found}"
            )
        given = {self.argument: cond.transpose(0, 1).flatten(0, 1)}
        both = self.network(torch.cat([x, x]), torch.cat([timesteps, timesteps]), **given).sample
        without, with_it = both[:, : x.shape[1]].chunk(2)
        guided: Tensor = without + self.scale * (with_it - without)
        return guided
