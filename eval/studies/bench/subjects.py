"""The networks that are measured, and the observations that condition their chunks."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from asd_policy.checkpoints import find_checkpoint, shipped
from asd_policy.data.replay import Replay
from asd_policy.errors import InputError
from asd_policy.eval.studies.bench.flops import NetworkSize, network_size
from asd_policy.policy import Checkpoint, Normalizer, PolicyConfig, load_checkpoint
from asd_policy.schedule import Schedule

OBSERVATIONS = Path(__file__).parent / "lift_observations.json"
# Default sizes of other packages, with random weights: Chi et al.'s low-dimensional U-Net, and
# LeRobot's (as large as Chi et al.'s for pictures).
UNTRAINED: dict[str, dict[str, Any]] = {
    "chi": {"down_dims": (256, 512, 1024), "step_embed_dim": 256},
    "lerobot": {"down_dims": (512, 1024, 2048), "step_embed_dim": 128},
}


@dataclass(frozen=True)
class Subject:
    """A network with what it takes to sample chunks.

    Attributes:
        network: the plain module, on its device. schedule: it was trained for.
        shape: of a chunk. conditions: (M, C), taken in turn; said in ``conditions_from``.
        trained: False where weights are random and acceptance means nothing.
        calibration: of the drafts, stored with the checkpoint; empty if there is none.
        sha256: of the checkpoint's weights; None of random ones, which are the seed's.
    """

    name: str
    network: nn.Module
    schedule: Schedule
    shape: tuple[int, ...]
    conditions: Tensor
    conditions_from: str
    trained: bool
    calibration: dict[str, Any]
    size: NetworkSize
    sha256: str | None = None

    @property
    def parameters(self) -> int:
        """Numbers in the network."""
        return sum(p.numel() for p in self.network.parameters())

    def at(self, steps: int) -> tuple[nn.Module, Schedule]:
        """Network and schedule of a chain of ``steps`` steps.

        Up to the trained number, fewer and larger steps. Above it, the trained schedule's own
        function of time on a finer grid, the network asked at fractions of its timesteps (the
        first of them a little below its own first, 0, and so beyond what it was trained for).

        Raises:
            ValueError: more steps than were trained, of a schedule that is no function of time.
        """
        trained = self.schedule.num_steps
        if steps <= trained:
            return self.network, self.schedule.respaced(steps)
        config = self.schedule.config
        if config.beta_schedule != "squaredcos_cap_v2":
            raise InputError(
                f"steps above the {trained} that were trained need beta_schedule "
                f"'squaredcos_cap_v2', got {config.beta_schedule!r}"
            )
        finer = Schedule.from_config(replace(config, num_steps=steps, inference_steps=None))
        return _stretched(self.network, trained / steps), finer

    def take(self, chunk: int, batch: int) -> Tensor:
        """(batch, C) conditions of a chunk: the same for every sampler."""
        rows = (chunk * batch + torch.arange(batch, device="cpu")) % len(self.conditions)
        return self.conditions[rows.to(self.conditions.device)]

    def describe(self) -> dict[str, Any]:
        """For bench.json."""
        return {
            "sha256": self.sha256,
            "parameters": self.parameters,
            "trained": self.trained,
            "trained_steps": self.schedule.num_steps,
            "chunk_shape": list(self.shape),
            "conditions": self.conditions_from,
            "flops_per_row": self.size.flops,
            "conditioning_flops_per_row": self.size.conditioning_flops,
            "weights": self.size.weights,
            "conditioning_weights": self.size.conditioning_weights,
        }


class _Rescale(nn.Module):
    """Timesteps of a finer grid → fractions of the trained ones with the same noise level."""

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio

    def forward(self, timesteps: Tensor) -> Tensor:
        return (timesteps + 1) * self.ratio - 1


def _stretched(network: nn.Module, ratio: float) -> nn.Module:
    """The same weights behind rescaled timesteps."""
    names = ("diffusion_step_encoder", "time_emb")  # of U-Nets, of transformers
    name = next(each for each in names if each in network._modules)
    stretched = copy.copy(network)
    stretched._modules = dict(network._modules)
    stretched._modules[name] = nn.Sequential(_Rescale(ratio), getattr(network, name))
    return stretched


def load_subject(name: str, device: torch.device, replay: Replay | None, seed: int = 0) -> Subject:
    """ "shipped", "chi", "lerobot", a policy that ships, or a checkpoint folder, on a device.

    Args:
        replay: demonstrations whose observations condition the chunks, where they fit.

    Raises:
        CheckpointError: no such checkpoint.
    """
    checkpoint = None if name in UNTRAINED else load_checkpoint(_folder(name))
    if checkpoint is None:
        config = PolicyConfig(_stored_columns(), 7, **UNTRAINED[name])
        torch.manual_seed(seed)
        network, schedule, card = config.build_network().eval(), Schedule.ddpm(), {}
    else:
        config, schedule, card = checkpoint.config, checkpoint.schedule, checkpoint.card
        network = checkpoint.network
    network = network.to(device).eval().requires_grad_(False)
    conditions, origin = _conditions(config, checkpoint, replay, seed)
    x = torch.zeros(1, *config.chunk_shape, device=device)
    conditions = conditions.to(device)
    return Subject(
        name,
        network,
        schedule,
        config.chunk_shape,
        conditions,
        origin,
        checkpoint is not None,
        card.get("calibration") or {},
        network_size(network, x, conditions[:1]),
        card.get("sha256"),
    )


def seen_by(names: Sequence[str]) -> tuple[list[str], str | None]:
    """The observations and the task of the first of these networks that is a user's own; none
    where there is no such one."""
    own = [name for name in names if name not in (*UNTRAINED, "shipped")]
    if not own:
        return [], None
    made = load_checkpoint(_folder(own[0]))
    return list(made.config.observation_keys), made.card.get("task")


def _folder(name: str) -> Path:
    return shipped("lift") if name == "shipped" else find_checkpoint(name)


def _stored_columns() -> dict[str, int]:
    return json.loads(OBSERVATIONS.read_text(encoding="utf-8"))["columns"]


def _conditions(
    config: PolicyConfig, checkpoint: Checkpoint | None, replay: Replay | None, seed: int
) -> tuple[Tensor, str]:
    """(M, To·Do) normalized conditions, and where they are from."""
    if checkpoint is not None:
        normalizer, keys = checkpoint.observation_normalizer, dict(config.observation_keys)
        if replay is not None and {k: v.shape[1] for k, v in replay.observations.items()} == keys:
            return _from_replay(replay, config, normalizer), "the demonstrations given"
        stored = json.loads(OBSERVATIONS.read_text(encoding="utf-8"))
        windows = torch.tensor(stored["windows"], device="cpu")
        if stored["columns"] == keys and windows.shape[1] == config.obs_horizon:
            return normalizer.normalize(windows).flatten(1), "64 moments of Lift demonstrations"
    generator = torch.Generator("cpu").manual_seed(seed)
    uniform = torch.rand(64, config.condition_dim, generator=generator, device="cpu")
    return 2 * uniform - 1, "uniform in [-1, 1]"


def _from_replay(replay: Replay, config: PolicyConfig, normalizer: Normalizer) -> Tensor:
    rows = torch.from_numpy(replay.stacked_observations(config.observation_keys))
    last = np.linspace(config.obs_horizon - 1, len(rows) - 1, 256).round().astype(int)
    picks = last[:, None] + np.arange(1 - config.obs_horizon, 1)
    return normalizer.normalize(rows[picks]).flatten(1)
