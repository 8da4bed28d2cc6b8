"""Stored demonstrations brought back to life: their models, and films of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from asd_policy.data.zarr_store import ZarrStore
from asd_policy.envs.episodes import episode_streams
from asd_policy.envs.films import FilmWriter
from asd_policy.envs.world import RobosuiteEnv
from asd_policy.errors import AsdPolicyError, DatasetError


class StoredEpisodes:
    """The episodes of a store that `asd_policy.envs.demos.collect` wrote, in their environment.

    Args:
        store: path of the store.
        env: of the store's task; one is made when None.

    Raises:
        DatasetError: the store is not what was written.
    """

    def __init__(self, store: Path, env: RobosuiteEnv | None = None) -> None:
        self._store = ZarrStore(store)
        self.env = RobosuiteEnv(self._store.attributes["task"]) if env is None else env
        names = ("meta/episode_ends", "meta/attempt", "data/state", "data/executed_action")
        ends, self._attempts, self._states, self._actions = map(self._store.read, names)
        self._ends = np.concatenate([[0], ends])

    def begin(self, episode: int) -> np.ndarray:
        """Reset the environment to stored episode `episode`; what was executed then, (T, dim).

        Raises:
            DatasetError: the episode's seed gives another first state here, as other versions
                of the simulator may.
        """
        attempt = int(self._attempts[episode])
        world_seed = episode_streams(int(self._store.attributes["seed"]), attempt).world
        self.env.reset(seed=world_seed)
        first, end = self._ends[episode : episode + 2]
        if not np.allclose(self.env.flat_state(), self._states[first], rtol=0.0, atol=1e-9):
            raise DatasetError(
                f"{self._store.path}: episode {episode} starts in another state here; it was "
                f"recorded with {self._store.attributes['versions']}"
            )
        return self._actions[first:end]

    def model(self, episode: int) -> str:
        """MuJoCo's model (XML) of stored episode `episode`, rebuilt from its seed: a recorded state
        means little without it (Lift's cube has another size in each).

        Raises:
            DatasetError: as `begin`.
        """
        self.begin(episode)
        return str(self.env.simulation.sim.model.get_xml())


def film(
    store: Path,
    episode: int,
    out: Path,
    size: tuple[int, int] = (480, 480),
    report: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Play stored episode `episode` again, and film it to `out` (mp4), `size` pixels, 20 a second.

    `report` is told after each picture how many there are, and how many there will be.

    Raises:
        DatasetError: see `StoredEpisodes.begin`.
    """
    task = ZarrStore(store).attributes["task"]
    env: Any = RobosuiteEnv(task, render_mode="rgb_array", render_size=size)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.stem}.part.mp4")  # imageio knows formats by the name's end
    try:
        actions = StoredEpisodes(store, env).begin(episode)
        with FilmWriter(unfinished, env.metadata["render_fps"]) as writer:
            writer.add(env.render())
            for done, action in enumerate(actions, 1):
                report(done, len(actions) + 1)
                env.step(action)
                writer.add(env.render())
        report(len(actions) + 1, len(actions) + 1)
        os.replace(unfinished, out)
    finally:
        env.close()
        unfinished.unlink(missing_ok=True)


def check_rendering() -> None:
    """Find out whether there is OpenGL.

    Raises:
        AsdPolicyError: there is none; the message says what to install.
    """
    from gymnasium.error import DependencyNotInstalled

    from asd_policy.envs.rendering import choose_backend

    try:
        choose_backend()
    except DependencyNotInstalled as error:
        raise AsdPolicyError(f"--render cannot film: {error}") from error
