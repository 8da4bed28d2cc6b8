"""Trains a network for a number of minutes, so that a benchmark's acceptance means something."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from asd_policy.data.replay import Replay
from asd_policy.errors import counted
from asd_policy.eval.runs.files import write_json
from asd_policy.eval.runs.schemas import VERSION, read_json
from asd_policy.files import writing
from asd_policy.policy import PolicyConfig, save_checkpoint
from asd_policy.policy.checkpoint import CARD_FILE
from asd_policy.schedule import Schedule
from asd_policy.training.trainer import Report, TrainConfig, Trainer

Say = Callable[[str], None]
PLAN, STATE = "plan.json", "train_state.pt"
DIFFUSION_STEPS = 100
PROBE_STEPS = 30  # timed, to know how many steps the minutes hold
SHARE = 0.93  # of the minutes that steps take; the rest is for saving and calibration


class OutOfTime(Exception):
    """Training has used its minutes before its last step."""


def train_for(
    minutes: float,
    replay: Replay,
    down_dims: tuple[int, ...],
    batch_size: int,
    folder: Path,
    device: torch.device,
    say: Say,
    deadline: float = float("inf"),
) -> Path:
    """Train, or go on, or do nothing where a finished checkpoint is there; returns its folder.

    The number of steps is chosen from a few that are timed, and kept, so that the learning rate
    comes to its end within the minutes, and a run that was stopped goes on as it was planned. The
    state is saved each minute. On a GPU convolutions are in TF32, as PyTorch has them.

    Raises:
        OutOfTime: twice the minutes have passed, or the deadline of ``time.monotonic()`` has (the
            state is saved: call again to go on).
    """
    finished = folder / "checkpoint"
    if (finished / CARD_FILE).exists():
        say(f"The network in {finished} is trained.")
        return finished
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    policy = PolicyConfig(
        {k: v.shape[1] for k, v in replay.observations.items()},
        replay.actions.shape[1],
        down_dims=down_dims,
    )
    config = _plan(minutes, replay, policy, batch_size, folder, device, say)
    trainer = Trainer(replay, policy, Schedule.ddpm(DIFFUSION_STEPS), config, device)
    if (folder / STATE).exists():
        trainer.load_state(folder / STATE)
    _run(trainer, folder / STATE, min(time.monotonic() + 120 * minutes, deadline), say)
    save_checkpoint(finished, trainer.checkpoint(_card(trainer, replay, device)))
    (folder / STATE).unlink()
    steps = counted(trainer.step, "step")
    say(f"Trained: {steps}, loss {trainer.loss:.4f}, {trainer.seconds:.0f} s")
    return finished


def _plan(
    minutes: float, replay: Replay, policy: PolicyConfig, batch_size: int, folder: Path,
    device: torch.device, say: Say,
) -> TrainConfig:  # fmt: skip
    """The recipe: that of the run that was begun, or one whose steps fill the minutes."""
    path = folder / PLAN
    if path.exists():
        return _read_plan(path)
    probe = Trainer(
        replay, policy, Schedule.ddpm(DIFFUSION_STEPS), TrainConfig(10**6, batch_size, 2e-4), device
    )
    for _ in range(3):
        probe.train_step()
    start = time.perf_counter()
    for _ in range(PROBE_STEPS):
        probe.train_step()
    each = (time.perf_counter() - start) / PROBE_STEPS
    steps = max(10, int(60 * SHARE * minutes / each))
    recipe: dict[str, Any] = {
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": 3e-4,
        "warmup_steps": min(500, steps // 10),
    }
    write_json(path, {"schema_version": VERSION["plan"]} | recipe)
    say(f"Training: {1e3 * each:.1f} ms a step, so {steps} steps of {batch_size}")
    return TrainConfig(**recipe)


def _read_plan(path: Path) -> TrainConfig:
    """Raises ValueError where it is not of this version."""
    plan = read_json(path, "plan")
    del plan["schema_version"]
    return TrainConfig(**plan)


def _run(trainer: Trainer, state: Path, deadline: float, say: Say) -> None:
    started = said = time.monotonic()

    def report(now: Report) -> None:
        nonlocal said
        clock = time.monotonic()
        if clock - said > 30:
            say(f"  step {now.step}/{trainer.config.steps}, loss {now.loss:.4f}")
            said = clock
        if clock > deadline:
            spent = (clock - started) / 60
            raise OutOfTime(f"step {now.step} of {trainer.config.steps} after {spent:.1f} min")

    trainer.run(state, report)


def _card(trainer: Trainer, replay: Replay, device: torch.device) -> dict[str, Any]:
    """What is known of the network, calibration of its drafts included."""
    config = trainer.config
    return {
        "task": replay.attributes.get("task"),
        "recipe": {
            "steps": config.steps,
            "batch_size": config.batch_size,
            "learning_rate": config.learning_rate,
            "precision": config.precision,
            "seconds": round(trainer.seconds, 1),
            "final_loss": round(trainer.loss, 5),
            "device": str(device),
            "torch": torch.__version__,
        },
        "calibration": trainer.calibration(),
    }
