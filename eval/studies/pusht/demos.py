"""Demonstrations of the scripted expert, as a LeRobotDataset on this disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from asd_policy.errors import InputError
from asd_policy.files import claimed
from asd_policy.progress import Stage

REPO = "local/pusht"  # LeRobot wants a name of two parts; nothing of that name is asked for
STEPS = 300  # of an episode, at most: as LeRobot has it
FIRST_SEED = 1_000_000  # of demonstrations: far from the seeds that policies are tried on


def make_env() -> Any:
    """gym-pusht with the T's keypoints and the pusher's position, without pictures."""
    import gym_pusht  # noqa: F401 - registers it
    import gymnasium as gym

    return gym.make(
        "gym_pusht/PushT-v0", obs_type="environment_state_agent_pos", max_episode_steps=STEPS
    )


def demonstrate(env: Any, expert: Any, seed: int, noise: float) -> tuple[dict[str, Any], bool]:
    """One episode: arrays (steps, ...) of what was seen and what the expert wanted, and success.

    Args:
        noise: standard deviation of what is added to the actions that are executed, pixels. The ones
            kept are the expert's own, so that a policy learns to come back (Laskey et al., DART).
    """
    from asd_policy.eval.studies.pusht.expert import state

    random = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    expert.reset()
    rows: dict[str, list[np.ndarray]] = {"environment_state": [], "agent_pos": [], "action": []}
    while True:
        wanted = np.clip(expert.act(*state(env)), 0, 512)
        for key, value in (*observation.items(), ("action", wanted)):
            rows[key].append(np.asarray(value, np.float32))
        done = np.clip(wanted + random.normal(0, noise, 2), 0, 512)
        observation, _, success, over, _ = env.step(done)
        if success or over:
            return {key: np.stack(values) for key, values in rows.items()}, bool(success)


def run_demos(folder: Path, episodes: int, noise: float) -> Path:
    """Successes of the expert, `episodes` of them, in a dataset in `folder`; its path.

    Episodes are kept one by one and the dataset is made of them at the end, so that a run that was
    killed goes on.
    """
    from asd_policy.eval.studies.pusht.expert import Expert

    with claimed(folder):
        made = folder / "dataset"
        if made.exists():
            raise InputError(f"{made} is there already; choose another --out, or go on to train")
        raw = folder / f"episodes-{noise:g}"
        raw.mkdir(exist_ok=True)
        env, expert = make_env(), Expert()
        kept = sorted(raw.glob("*.npz"))
        good = sum("success" in path.name for path in kept)
        with Stage("demonstrations", episodes, good) as stage:
            seed = FIRST_SEED + len(kept)
            while good < episodes:
                rows, success = demonstrate(env, expert, seed, noise)
                path = raw / f"{seed}-{'success' if success else 'failure'}.npz"
                with open(raw / "part", "wb") as file:
                    np.savez(file, **rows)
                os.replace(raw / "part", path)
                seed, good = seed + 1, good + success
                stage.update(good, f"{seed - FIRST_SEED - good} failed")
        write_dataset(sorted(raw.glob("*-success.npz"))[:episodes], made)
    return made


def write_dataset(files: list[Path], folder: Path) -> None:
    """A LeRobotDataset of these episodes, whole or not at all."""
    from asd_policy.integrations.torchvision_operators import import_torchvision

    import_torchvision()
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = {
        "observation.state": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
        "observation.environment_state": {
            "dtype": "float32",
            "shape": (16,),
            "names": [f"{axis}{i}" for i in range(8) for axis in "xy"],
        },
        "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
    }
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    dataset = LeRobotDataset.create(REPO, fps=10, features=features, root=part, use_videos=False)
    for path in files:
        rows = np.load(path)
        for t in range(len(rows["action"])):
            dataset.add_frame(
                {
                    "observation.state": rows["agent_pos"][t],
                    "observation.environment_state": rows["environment_state"][t],
                    "action": rows["action"][t],
                    "task": "Push the T onto its goal.",
                }
            )
        dataset.save_episode()
    dataset.finalize()
    os.replace(part, folder)
