"""Training of a diffusion policy by denoising score matching (Ho et al., 2020, eq. 14).

Every random choice of step i depends on (seed, i) alone and is drawn on the CPU, so that a run
that was killed and resumed, on a CPU or a GPU, sees the same batches as one that was not.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asd_policy.ambient import untouched
from asd_policy.data.replay import Replay, training_windows
from asd_policy.data.zarr_store import array_digest
from asd_policy.engine.cuda_graph import CudaRecorder
from asd_policy.errors import (
    CheckpointError,
    DatasetError,
    InputError,
    NonFiniteError,
    whole_from,
)
from asd_policy.files import check_archive, replacing
from asd_policy.interrupts import handled_after
from asd_policy.networks.prepare import prepare
from asd_policy.policy.checkpoint import Checkpoint
from asd_policy.policy.config import PolicyConfig
from asd_policy.policy.normalizer import Normalizer
from asd_policy.sampling import calibrate
from asd_policy.schedule import Schedule, check_choice
from asd_policy.training.cpu_layers import faster_on_cpu
from asd_policy.training.ema import EMA

PRECISIONS = ("fp32", "bf16")
_PARTS = ("network", "ema", "optimizer", "step", "loss", "seconds")  # of a state, as they are kept


@dataclass(frozen=True)
class TrainConfig:
    """Recipe of one training run. Learning rate: linear warm-up, then half a cosine to zero.

    ``precision`` "bf16" computes the network's products in bfloat16, from weights that stay in
    float32: faster where the processor knows that type.
    """

    steps: int = 5_000
    batch_size: int = 128
    learning_rate: float = 6e-4
    warmup_steps: int = 300
    weight_decay: float = 1e-6
    ema_power: float = 0.75
    gradient_clip: float = 1.0
    seed: int = 0
    precision: str = "fp32"
    save_seconds: float = 60.0

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, PRECISIONS)
        for name, least in (("steps", 1), ("batch_size", 1), ("warmup_steps", 0), ("seed", 0)):
            object.__setattr__(self, name, whole_from(least, name, getattr(self, name)))
        for name in ("learning_rate", "gradient_clip", "ema_power"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be positive, got {getattr(self, name)}")

    def lr_at(self, step: int) -> float:
        """Learning rate of step ``step`` (from 0)."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return self.learning_rate * warm * (1 + math.cos(math.pi * step / self.steps)) / 2


@dataclass(frozen=True)
class Report:
    """What the trainer reports after each step; ``loss`` is a running mean."""

    step: int
    loss: float


class Trainer:
    """Owns network, EMA, optimizer and the step counter.

    What is set in PyTorch around it (autocast, inference mode, ``no_grad``, default device and
    dtype) changes nothing.

    Args:
        replay: demonstrations.
        policy: architecture and horizons.
        schedule: noise schedule the network is trained for.
        config: recipe.
        device: where to train.
        start: a checkpoint whose weights to begin with. Observations and actions are scaled by
            this run's own data, so that after other demonstrations the weights are a nearby
            beginning rather than the same policy.

    Raises:
        CheckpointError: ``start`` has another architecture or schedule.
        DatasetError: observations or actions that are not the policy's.
    """

    @untouched()
    def __init__(
        self,
        replay: Replay,
        policy: PolicyConfig,
        schedule: Schedule,
        config: TrainConfig,
        device: str | torch.device = "cpu",
        start: Checkpoint | None = None,
    ) -> None:
        self.policy, self.schedule, self.config = policy, schedule, config
        self.device = torch.device(device)
        seen = replay.in_order(policy.observation_keys)
        if replay.actions.shape[1] != policy.action_dim:
            raise DatasetError(
                f"expected actions of {policy.action_dim} numbers, got {replay.actions.shape[1]}"
            )
        self.observation_normalizer = Normalizer.fit(seen, policy.quaternions)
        self.action_normalizer = Normalizer.fit({"action": replay.actions}, actions=True)
        stacked = torch.from_numpy(replay.stacked_observations(policy.observation_keys))
        self._observations = self.observation_normalizer.normalize(stacked).to(self.device)
        actions = torch.from_numpy(replay.actions)
        self._actions = self.action_normalizer.normalize(actions).to(self.device)
        self._windows = torch.from_numpy(training_windows(replay, *policy.horizons))
        everything = stacked.numpy(), replay.actions, replay.episode_ends, replay.interrupted
        self._demonstrations = [array_digest(values) for values in everything]
        torch.manual_seed(config.seed)
        self.network = policy.build_network().to(self.device)
        self.started_from: str | None = None
        if start is not None:
            self._start_from(start)
        self.ema = EMA(self.network, config.ema_power)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            betas=(0.95, 0.999),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.network.train()
        self._compute: Callable[..., Tensor] | None = None  # gradients of a batch
        self.step, self.loss, self.seconds = 0, float("nan"), 0.0

    def _start_from(self, start: Checkpoint) -> None:
        theirs, ours = (
            {"policy": _as_weights_know_it(config), "schedule": schedule.to_dict()}
            for config, schedule in (
                (start.config, start.schedule),
                (self.policy, self.schedule),
            )
        )
        if theirs != ours:
            raise CheckpointError(
                f"the checkpoint to start from is of another kind ({_differing(theirs, ours)}); "
                "its weights would mean something else"
            )
        self.network.load_state_dict(start.network.state_dict())
        self.started_from = start.card.get("sha256")  # none of one that was never saved

    def _gradients(self, noisy: Tensor, target: Tensor, timesteps: Tensor, cond: Tensor) -> Tensor:
        """The loss of a batch, its gradients in the parameters."""
        self.optimizer.zero_grad(set_to_none=True)
        # A graph must cast the weights anew each time: casts are not kept on a GPU.
        half, keep = self.config.precision == "bf16", self.device.type != "cuda"
        cast = torch.autocast(self.device.type, torch.bfloat16, enabled=half, cache_enabled=keep)
        with cast, faster_on_cpu(self.device):
            predicted = self.network(noisy, timesteps, cond)
        torch.clear_autocast_cache()  # kept, within another autocast, after the weights have moved
        loss = (predicted.float() - target).square().mean()
        loss.backward()
        return loss.detach()

    def _captured(self, first: Sequence[Tensor]) -> Callable[..., Tensor]:
        """:meth:`_gradients` as a CUDA graph: a small network's step is mostly launches."""
        inputs = [tensor.clone() for tensor in first]
        losses: list[Tensor] = []

        def work() -> None:
            losses[:] = [self._gradients(*inputs)]

        what = f"a training step of {len(inputs[0])} windows"
        recorder = CudaRecorder(self.device)
        captured, _ = recorder.record(work, what, smaller="A smaller batch size")

        def replay(*batch: Tensor) -> Tensor:
            for static, tensor in zip(inputs, batch, strict=True):
                static.copy_(tensor)
            captured()
            return losses[0]

        return replay

    @property
    def num_windows(self) -> int:
        return len(self._windows)

    def _batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Clean chunks (N, Tp, Da), conditions (N, To·Do), noise and timesteps of this step."""
        seed = np.random.SeedSequence((self.config.seed, self.step)).generate_state(1)[0]
        generator = torch.Generator("cpu").manual_seed(int(seed))
        size = self.config.batch_size
        host: dict[str, Any] = {"generator": generator, "device": "cpu"}
        picks = torch.randint(self.num_windows, (size,), **host)
        rows = self._windows[picks].to(self.device)
        timesteps = torch.randint(self.schedule.config.num_steps, (size,), **host)
        noise = torch.randn((size, *self.policy.chunk_shape), **host)
        cond = self._observations[rows[:, : self.policy.obs_horizon]].flatten(1)
        return self._actions[rows], cond, noise.to(self.device), timesteps.to(self.device)

    def conditions(self, count: int) -> Tensor:
        """(count, To·Do) normalized observations of windows spread over the data."""
        spread = torch.linspace(0, self.num_windows - 1, count, device="cpu").long()
        rows = self._windows[spread][:, : self.policy.obs_horizon].to(self.device)
        return self._observations[rows].flatten(1)

    @untouched()
    def train_step(self) -> float:
        """One optimizer step; returns its loss. Raises NonFiniteError if the loss or its gradients
        are not finite, and takes no step: the state that is saved then is still a good one."""
        clean, cond, noise, timesteps = self._batch()
        noisy = self.schedule.add_noise(clean, noise, timesteps)
        target = self.schedule.training_target(clean, noise, timesteps)
        batch = noisy, target, timesteps, cond
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_at(self.step)
        if self._compute is None:
            on_gpu = self.device.type == "cuda"
            self._compute = self._captured(batch) if on_gpu else self._gradients
        loss = self._compute(*batch)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip)
        value, length = torch.stack((loss, norm)).tolist()  # a GPU is waited for once
        for name, found in (("loss", value), ("gradient's norm", length)):
            if not math.isfinite(found):
                raise NonFiniteError(f"the training {name} became {found} at step {self.step}")
        with handled_after():  # what is saved on Ctrl-C is never half a step
            self.optimizer.step()
            self.step += 1
            self.ema.update(self.network, self.step)
            self.loss = value if math.isnan(self.loss) else 0.99 * self.loss + 0.01 * value
        return value

    def run(self, state_file: Path, report: Callable[[Report], None]) -> None:
        """Train to the last step, saving the state every ``save_seconds`` and on interruption."""
        saved = time.monotonic()
        try:
            while self.step < self.config.steps:
                started = time.monotonic()
                self.train_step()
                self.seconds += time.monotonic() - started
                report(Report(self.step, self.loss))
                if time.monotonic() - saved > self.config.save_seconds:
                    self.save_state(state_file)
                    saved = time.monotonic()
        finally:
            self.save_state(state_file)

    def save_state(self, path: Path) -> None:
        """Write everything needed to go on, replacing the file in one move."""
        state = {
            "network": self.network.state_dict(),
            "ema": self.ema.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "loss": self.loss,
            "seconds": self.seconds,
            "identity": self._identity(),
        }
        with replacing(path) as file:
            torch.save(state, file)

    def _identity(self) -> dict[str, Any]:
        recipe = {k: v for k, v in asdict(self.config).items() if k != "save_seconds"}
        return {
            "policy": self.policy.to_dict(),
            "schedule": self.schedule.to_dict(),
            "recipe": recipe,
            "start": self.started_from,
            "demonstrations": self._demonstrations,
        }

    @untouched()
    def load_state(self, path: Path) -> None:
        """Go on from :meth:`save_state`. Raises CheckpointError if it is of another run."""
        try:
            check_archive(path)
            state = torch.load(path, map_location=self.device, weights_only=True)
            there, *parts = (state[key] for key in ("identity", *_PARTS))
            if not all(isinstance(each, str) for each in there["demonstrations"]):
                raise TypeError("these are no digests")
        except OSError:
            raise
        except Exception as error:  # whatever a damaged file does to the pickle's reader
            raise CheckpointError(f"{path} is damaged, or of another program") from error
        ours = self._identity()
        if there != ours:
            raise CheckpointError(
                f"{path} belongs to another training run ({_differing(there, ours)})"
            )
        network, average, optimizer, self.step, self.loss, self.seconds = parts
        self.network.load_state_dict(network)
        self.ema.network.load_state_dict(average)
        self.optimizer.load_state_dict(optimizer)

    @untouched(gradients=False)
    def calibration(self, progress: Callable[[int], None] = lambda done: None) -> dict[str, Any]:
        """Slopes and acceptance of the averaged network, at observations of the training data;
        `progress` is called with the number of chunks that were drawn for it."""
        chains = 16
        calibration = calibrate(
            prepare(self.ema.network, self.schedule.timesteps),  # convolutions in their fast form
            self.schedule,
            shape=(chains, *self.policy.chunk_shape),
            cond=self.conditions(chains),
            chunks=4,
            measure_costs=False,
            progress=progress,
            generator=torch.Generator("cpu").manual_seed(self.config.seed),
        )
        return calibration.to_dict()

    def checkpoint(self, card: dict[str, Any]) -> Checkpoint:
        """The averaged network of now as a checkpoint, with ``card`` entries to be reported."""
        return Checkpoint(
            copy.deepcopy(self.ema.network),
            self.policy,
            self.schedule,
            self.observation_normalizer,
            self.action_normalizer,
            card,
        )


def _as_weights_know_it(config: PolicyConfig) -> dict[str, Any]:
    """A policy's configuration, but for how many actions of a chunk are executed."""
    return {k: v for k, v in config.to_dict().items() if k != "action_horizon"}


def _differing(there: Any, now: Any, name: str = "") -> str:
    """Each entry that differs, and both of its values, where they are short."""
    if isinstance(there, dict) and isinstance(now, dict):
        keys = [key for key in {**there, **now} if there.get(key) != now.get(key)]
        return "; ".join(_differing(there.get(key), now.get(key), key) for key in keys)
    both = f"{there} there, {now} now"
    return f"{name} {both}" if len(both) <= 80 else f"other {name}"
