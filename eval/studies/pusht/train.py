"""A small diffusion policy on demonstrations, by LeRobot's own `lerobot-train`."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from unittest import mock

import asd_policy.integrations.lerobot  # noqa: F401 - first: torchvision may want its help
from asd_policy.console import say
from asd_policy.errors import InputError
from asd_policy.eval.studies.pusht.demos import OUT, REPO
from asd_policy.threads import limited_to

LAST = Path("train/checkpoints/last/pretrained_model")  # in the folder of all three steps

# LeRobot's default leaves environment states as they are: here pixels, up to 512.
NORMALIZATION = "--policy.normalization_mapping=" + json.dumps(
    {"STATE": "MIN_MAX", "ENV": "MIN_MAX", "ACTION": "MIN_MAX"}
)


def train(
    out: Path = OUT, steps: int = 3500, batch_size: int = 64, save_freq: int = 250,
    channels: tuple[int, ...] = (32, 64, 128),
) -> None:  # fmt: skip
    """Train a small diffusion policy by lerobot-train in <out>/train, or go on with it.

    Args:
        out: Folder of all three steps.
        steps: Steps of the optimizer, in all.
        batch_size: Frames in a step.
        save_freq: Steps between checkpoints, from the last of which it goes on.
        channels: Of the U-Net.
    """
    dataset, last = out / "dataset", out / LAST / "train_config.json"
    if not dataset.is_dir():
        raise InputError(f"{dataset} is missing; `demos` makes it")
    words = [f"--dataset.root={dataset}", f"--output_dir={out}/train", f"--steps={steps}"]
    if last.exists():  # the folder may have been moved
        words += [f"--config_path={last}", "--resume=true"]
    else:
        words += [
            f"--dataset.repo_id={REPO}", "--policy.type=diffusion", "--policy.device=cpu",
            "--policy.push_to_hub=false", f"--policy.down_dims={list(channels)}",
            "--policy.diffusion_step_embed_dim=64", "--policy.optimizer_lr=1e-3",
            "--policy.scheduler_warmup_steps=200", NORMALIZATION, f"--batch_size={batch_size}",
            f"--save_freq={save_freq}", "--log_freq=100", "--eval_freq=0", "--num_workers=0",
            "--seed=1",
        ]  # fmt: skip
    lerobot_train(words)
    say(f"Policy: {last.parent}")


def lerobot_train(words: list[str]) -> None:
    """`lerobot-train` with these words, on one thread. Frames are kept as they were read: to read
    them again takes longer than a step of this network."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.scripts.lerobot_train import main

    kept = functools.cache(LeRobotDataset.__getitem__)
    with (
        limited_to(1),
        mock.patch.object(LeRobotDataset, "__getitem__", lambda self, i: dict(kept(self, i))),
        mock.patch.object(sys, "argv", ["lerobot-train", *words]),
    ):
        main()
