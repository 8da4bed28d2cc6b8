"""Demonstrations of the scripted expert, as a LeRobotDataset on this disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from asd_policy.console import say
from asd_policy.errors import InputError
from asd_policy.eval.studies.pusht.expert import Expert, state
from asd_policy.files import claimed
from asd_policy.integrations.torchvision_operators import import_torchvision
from asd_policy.progress import Stage

OUT = Path("outputs/pusht")
REPO = "local/pusht"  # LeRobot wants a name of two parts; nothing of that name is asked for
STEPS = 300  # of an episode, at most: LeRobot's
FIRST_SEED = 1_000_000  # of demonstrations: far from the seeds that policies are tried on


def demos(out: Path = OUT, episodes: int = 160, noise: float = 6.0) -> None:
    """Record successes of the scripted expert in <out>/dataset.

    Args:
        out: Folder of all three steps.
        episodes: Successes to record.
        noise: Standard deviation of what is added to the expert's actions, pixels. The actions
            that are kept are without: a policy learns to come back (Laskey et al., DART, 2017).
    """
    made, raw = out / "dataset", out / f"episodes-{noise:g}"
    with claimed(out):
        if made.exists():
            raise InputError(f"{made} is there already; choose another --out, or go on to train")
        raw.mkdir(exist_ok=True)
        env, expert = pusht(), Expert()
        kept = [path.stem for path in raw.glob("*.npz")]
        good = sum("success" in name for name in kept)
        with Stage("demonstrations", episodes, good) as stage:
            for seed in range(FIRST_SEED + len(kept), FIRST_SEED + 10 * episodes):
                if good >= episodes:
                    break
                rows, success = demonstrate(env, expert, seed, noise)
                with open(raw / "part", "wb") as file:
                    np.savez(file, **rows)
                os.replace(raw / "part", raw / f"{seed}-{'success' if success else 'failure'}.npz")
                good += success
                stage.update(good, f"{seed + 1 - FIRST_SEED - good} failed")
        write_dataset(sorted(raw.glob("*-success.npz"))[:episodes], made)
    say(f"Demonstrations: {made}")


def pusht() -> Any:
    """gym-pusht with the T's keypoints and the pusher's position, without pictures."""
    kind = "environment_state_agent_pos"
    return gym.make("gym_pusht/PushT-v0", obs_type=kind, max_episode_steps=STEPS)


def demonstrate(env: Any, expert: Expert, seed: int, noise: float) -> tuple[dict[str, Any], bool]:
    """One episode: arrays (steps, ...) of what was seen and what the expert wanted; success."""
    random = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    expert.reset()
    seen: list[dict[str, Any]] = []
    while True:
        action = np.clip(expert.act(*state(env)), 0, 512)
        seen.append({**observation, "action": action})
        observation, _, success, over, _ = env.step(
            np.clip(action + random.normal(0, noise, 2), 0, 512)
        )
        if success or over:
            rows = {
                key: np.stack([each[key] for each in seen], dtype=np.float32) for key in seen[0]
            }
            return rows, bool(success)


def write_dataset(files: list[Path], folder: Path) -> None:
    """A LeRobotDataset of these episodes, whole or not at all."""
    import_torchvision()
    from datasets import disable_progress_bars
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    disable_progress_bars()  # one for each episode
    keypoints = [f"{axis}{i}" for i in range(8) for axis in "xy"]
    names = {
        "observation.state": ["x", "y"], "observation.environment_state": keypoints,
        "action": ["x", "y"],
    }  # fmt: skip
    features = {
        key: {"dtype": "float32", "shape": (len(of),), "names": of} for key, of in names.items()
    }
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    dataset = LeRobotDataset.create(REPO, fps=10, features=features, root=part, use_videos=False)
    for path in files:
        with np.load(path) as rows:
            columns = [rows[key] for key in ("agent_pos", "environment_state", "action")]
        for row in zip(*columns, strict=True):
            frame = dict(zip(names, row, strict=True))
            dataset.add_frame({**frame, "task": "Push the T onto its goal."})
        dataset.save_episode()
    dataset.finalize()
    os.replace(part, folder)
