"""LeRobot's diffusion policies in this package's loop: what `asd-policy serve` draws with."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.utils.constants import OBS_IMAGES, OBS_STATE
from torch import Tensor

from asd_policy.ambient import own_precision
from asd_policy.errors import CheckpointError, InputError, NonFiniteError
from asd_policy.integrations.hooked import Place
from asd_policy.integrations.lerobot.accelerating import hook_of
from asd_policy.integrations.lerobot.folders import opened
from asd_policy.integrations.lerobot.history import TYPES
from asd_policy.integrations.lerobot.hook import LeRobotSample
from asd_policy.policy.environment import Frame
from asd_policy.policy.horizon import Chunks, Observation
from asd_policy.policy.observations import check_shapes, numbers, text
from asd_policy.policy.sampled import EncodedPolicy, SampledSource
from asd_policy.samplers.config import SamplerConfig

# Steps of processors that take each row by itself, so that many can be given at once.
_ROWWISE = {
    "rename_observations_processor", "to_batch_processor", "device_processor",
    "normalizer_processor", "unnormalizer_processor", "tokenizer_processor",
}  # fmt: skip
# What a tokenizer makes of a frame's text, of which a policy reads the newest.
_TOKENS = "observation.language.tokens", "observation.language.attention_mask"


class LeRobotSource(SampledSource):
    """Chunks of a ``DiffusionPolicy`` or ``MultiTaskDiTPolicy``, through its processors and
    encoders.

    Observations have LeRobot's names: states (B, width), pictures (B, height, width, 3) uint8,
    first row at the top, and, of a policy that reads what it is to do, ``task``, B strings.

    Args:
        policy, before, after: as LeRobot loads them: a policy and its two processors.
        hook: draws the chunks; it need not be in the place of the policy's own loop.

    Attributes:
        shapes: observation key → shape.

    Raises:
        CheckpointError: an observation that is neither a row of numbers nor a picture in colour, or
            a processor with a step that is not known to take rows one by one.
        ValueError: a sampler or a setting of its scheduler that this package has not.
    """

    def __init__(self, policy: Any, before: Any, after: Any, hook: LeRobotSample) -> None:
        _check_steps(before, after)
        self.texts = tuple(
            step.task_key for step in before.steps if _name(step) == "tokenizer_processor"
        )
        self._policy, self._before, self._after, self._hook = policy, before, after, hook
        config = policy.config
        self.horizons = int(config.n_obs_steps), int(config.n_action_steps), int(config.horizon)
        self.shapes = {key: _shape(key, each) for key, each in config.input_features.items()}
        self.shapes |= dict.fromkeys(self.texts, ())
        self.pictures = {k: (s[0], s[1]) for k, s in self.shapes.items() if len(s) == 3}
        given, named = hook.example()
        kind = hook.asked(*given, **named).kind
        self.device, self.sampler = kind.device, hook.sampler(kind, hook.eta)

    def frames(self, observations: Observation, batch: int) -> Sequence[Sequence[Frame]]:
        """One of each environment: key → (\\*shape)."""
        given = {k: observations[k] for k in self.shapes if k in observations}
        rows = {k: (text if k in self.texts else numbers)(k, v) for k, v in given.items()}
        expected = {key: (batch, *shape) for key, shape in self.shapes.items()}
        check_shapes(observations, expected, {key: value.shape for key, value in rows.items()})
        for key, value in rows.items():
            if key in self.pictures and value.dtype != np.uint8:
                raise InputError(f"picture {key!r} must be of uint8, 0 to 255, got {value.dtype}")
        # Copies: robots use their buffers again, and histories keep these.
        return [[{key: np.array(v[i]) for key, v in rows.items()}] for i in range(batch)]

    @torch.inference_mode()
    @own_precision(networks_too=True)
    def draw(
        self, histories: Sequence[Sequence[Frame]], streams: Sequence[torch.Generator]
    ) -> Chunks:
        frames = [frame for history in histories for frame in history]
        rows = {key: self._read(key, [frame[key] for frame in frames]) for key in self.shapes}
        cond = self._condition(self._before(rows))
        chunks = self._hook.draw(self._hook.for_rows(len(histories), cond), streams)
        actions = self._after(chunks.flatten(0, 1)).reshape(chunks.shape)
        if not bool(actions.isfinite().all()):
            raise NonFiniteError("the sampler returned a NaN or infinite action")
        return Chunks(actions.cpu().numpy(), self._hook.stats)

    def _read(self, key: str, values: Sequence[np.ndarray]) -> Tensor | list[str]:
        """As LeRobot reads what its robots and environments give: pictures are 0 to 1."""
        if key in self.texts:
            return [str(value) for value in values]
        rows = torch.from_numpy(np.stack(values))
        if key in self.pictures:
            return rows.permute(0, 3, 1, 2).contiguous().float() / 255
        return rows.float()

    def _condition(self, rows: Mapping[str, Any]) -> Tensor:
        """(B, width) of what the preprocessor made of B·To frames."""
        seen = {key: rows[key].to(self.device) for key in self.shapes if key not in self.texts}
        pictures = self._policy.config.image_features
        if pictures:
            seen[OBS_IMAGES] = torch.stack([seen[key] for key in pictures], dim=-4)
        to, count = self.horizons[0], len(seen[OBS_STATE])
        batch = {k: v.reshape(count // to, to, *v.shape[1:]) for k, v in seen.items()}
        for key in _TOKENS if self.texts else ():
            batch[key] = rows[key].to(self.device)[to - 1 :: to]
        return self._hook.encode(batch)


def _shape(key: str, feature: Any) -> tuple[int, ...]:
    """Of one observation as clients send it."""
    shape = tuple(int(size) for size in feature.shape)
    if len(shape) == 1:
        return shape
    if len(shape) == 3 and shape[0] == 3:
        return (*shape[1:], 3)
    raise CheckpointError(
        f"the policy sees {key!r} of shape {shape}; expected rows of numbers, and pictures in "
        "colour, (3, height, width)"
    )


def _check_steps(*processors: Any) -> None:
    steps = [step for processor in processors for step in processor.steps]
    other = sorted({_name(step) for step in steps} - _ROWWISE)
    if other:
        raise CheckpointError(
            f"the policy's processors have the step {other[0]}, which this package does not know: "
            f"expected {', '.join(sorted(_ROWWISE))}"
        )


def _name(step: Any) -> str:
    return getattr(type(step), "_registry_name", None) or type(step).__name__


def open_folder(folder: Path, place: Mapping[str, Any]) -> Callable[[SamplerConfig], EncodedPolicy]:
    """Read a folder of LeRobot's once.

    Args:
        place: device, engine, precision, compile and threads of ``DiffusionPolicy``.

    Returns:
        what makes its policy from a sampler; such policies share LeRobot's.

    Raises:
        CheckpointError: as for ``asd_policy.integrations.lerobot.load``, or a policy of another
            type than diffusion.
    """
    options = dict(place)
    threads, device = options.pop("threads", None), str(options.pop("device"))
    with contextlib.redirect_stdout(io.StringIO()):  # what LeRobot prints is not the command's
        policy, before, after = opened(folder, device)
    if policy.config.type not in TYPES:
        raise CheckpointError(
            f"{folder} holds a policy of the type {policy.config.type!r}; expected one of "
            f"{', '.join(TYPES)}"
        )
    parameters = sum(p.numel() for p in policy.parameters())

    def made(config: SamplerConfig) -> EncodedPolicy:
        source = LeRobotSource(policy, before, after, hook_of(policy, config, Place(**options)))
        return EncodedPolicy(source, source.shapes, parameters, {}, threads)

    return made
