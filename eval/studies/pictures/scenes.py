"""Pictures that the package makes itself: what cameras see of its robots' scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from asd_policy.data.replay import DAMAGED_NPZ
from asd_policy.errors import AsdPolicyError
from asd_policy.files import replacing
from asd_policy.progress import Stage

TASKS = ("lift", "can", "square", "tool_hang")
CAMERAS = ("agentview", "frontview")
SIDE, FINER = 32, 2  # pixels of a picture; rendered so many times as fine, and averaged
MOMENTS = 20  # of an episode
WAY = 4  # control steps from one moment to the next, in a direction of their own


def make_scenes(folder: Path, episodes: int) -> None:
    """Render `episodes` episodes of each task into `folder`, a file each; those there are kept.

    An episode is a scene at random and an arm that moves at random; each of its moments is seen by
    every camera.

    Raises:
        AsdPolicyError: there is no OpenGL that works.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(task, i) for i in range(episodes) for task in TASKS]
    todo = [(task, i) for task, i in wanted if not _file(folder, task, i).exists()]
    if not todo:
        return
    with Stage("rendering episodes", len(wanted), len(wanted) - len(todo)) as stage:
        for task in TASKS:
            seeds = [i for name, i in todo if name == task]
            if seeds:
                _render(folder, task, seeds, stage, wanted)


def _render(folder: Path, task: str, seeds: list[int], stage: Stage, wanted: list[Any]) -> None:
    from gymnasium.error import DependencyNotInstalled

    from asd_policy.envs.rendering import OffscreenCamera
    from asd_policy.envs.world import RobosuiteEnv

    try:
        camera = OffscreenCamera(FINER * SIDE, FINER * SIDE)
    except DependencyNotInstalled as error:
        raise AsdPolicyError(str(error)) from error
    env = RobosuiteEnv(task)
    try:
        for seed in seeds:
            path = _file(folder, task, seed)
            pictures = _episode(env, camera, seed)
            with replacing(path) as file:
                np.savez_compressed(file, pictures=pictures)
            stage.update(sum(_file(folder, *each).exists() for each in wanted))
    finally:
        camera.close()
        env.close()


def _episode(env: Any, camera: Any, seed: int) -> np.ndarray:
    """(moments, cameras, SIDE, SIDE, 3) uint8."""
    random = np.random.default_rng(seed)
    env.reset(seed=seed)
    seen = []
    for _ in range(MOMENTS):
        action = random.uniform(-1, 1, env.action_space.shape)
        for _ in range(WAY):
            env.step(action)
        sim = env.simulation.sim
        views = [camera.render(sim.model._model, sim.data._data, name) for name in CAMERAS]
        seen.append([_averaged(view) for view in views])
    return np.array(seen, np.uint8)


def _averaged(fine: np.ndarray) -> np.ndarray:
    """(SIDE, SIDE, 3) of a picture FINER times as fine."""
    blocks = fine.reshape(SIDE, FINER, SIDE, FINER, 3)
    return np.rint(blocks.mean((1, 3))).astype(np.uint8)


def read_scenes(folder: Path, episodes: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Pictures (N, SIDE, SIDE, 3) uint8 of so many episodes of each task, which are there; their
    labels (N,), and the labels' names.

    Raises:
        AsdPolicyError: a file is damaged.
    """
    pictures, labels = [], []
    for task_number, task in enumerate(TASKS):
        for path in (_file(folder, task, i) for i in range(episodes)):
            try:
                with np.load(path) as kept:
                    seen = kept["pictures"]
            except DAMAGED_NPZ as error:
                raise AsdPolicyError(
                    f"{path} is damaged ({error}); remove it, and it is made anew"
                ) from error
            pictures.append(seen.reshape(-1, SIDE, SIDE, 3))
            cameras = np.tile(np.arange(len(CAMERAS)), len(seen))
            labels.append(task_number * len(CAMERAS) + cameras)
    names = tuple(f"{task} {camera}" for task in TASKS for camera in CAMERAS)
    return np.concatenate(pictures), np.concatenate(labels), names


def _file(folder: Path, task: str, episode: int) -> Path:
    return folder / f"{task}-{episode:03d}.npz"
