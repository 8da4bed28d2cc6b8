"""Episodes as mp4, streamed to a temporary name and named by their outcome when they end."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asd_policy.envs.films import FilmWriter
from asd_policy.envs.workers import interrupts_held
from asd_policy.errors import AsdPolicyError
from asd_policy.files import writing

if TYPE_CHECKING:
    from asd_policy.eval.slots import Slot
    from asd_policy.policy import ChunkStats


class Recorder:
    """One episode's film, each frame with a bar that says what is seen (see `annotate`). Frames go
    to a hidden file; `finish` gives it its name. `title`: task, seed and sampler."""

    def __init__(self, folder: Path, stem: str, fps: float, title: str):
        self._folder, self._stem, self._title = folder, stem, title
        self._frames = 0
        # imageio knows the format by the name's end, so the end stays .mp4
        self._partial = folder / f".{stem}.part.mp4"
        with writing(self._partial):
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = FilmWriter(self._partial, fps)

    def add(self, frame: np.ndarray, chunk: ChunkStats | None) -> None:
        """Append one (height, width, 3) uint8 frame: the first is of step 0. `chunk` is the last
        that was sampled for this episode, None before the first."""
        from asd_policy.eval.rollout.annotate import annotated  # Pillow, where a film is made only

        seen = annotated(frame, self._title, self._frames, chunk)
        with writing(self._partial):
            self._writer.add(seen)
        self._frames += 1

    def finish(self, success: bool) -> Path:
        """Close the film and name it <stem>_<outcome>.mp4."""
        path = self._folder / f"{self._stem}_{'success' if success else 'failure'}.mp4"
        with writing(path):
            self._writer.close()
            os.replace(self._partial, path)
        return path

    def discard(self) -> None:
        """Close and remove the film of an episode that did not end."""
        self._writer.close()
        self._partial.unlink(missing_ok=True)


def check_rendering(slot: Slot) -> None:
    """Render one frame of a freshly reset environment, or raise AsdPolicyError saying what is
    missing: better now than after the first episode."""
    from gymnasium.error import DependencyNotInstalled

    try:
        slot.start(0, film=True)
        frame = slot.receive().frame
    except DependencyNotInstalled as error:
        raise AsdPolicyError(f"--video cannot be recorded: {error}") from error
    assert frame is not None
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise AsdPolicyError(
            f"--video needs (height, width, 3) uint8 frames, got {frame.shape} {frame.dtype}"
        )


def middle_frame(path: Path) -> np.ndarray | None:
    """The (height, width, 3) uint8 frame in the middle of a film; None where it cannot be read."""
    import imageio.v2 as imageio

    try:
        with interrupts_held():  # it starts ffmpeg, by a fork that would lose them
            film: Any = imageio.get_reader(path)
        with contextlib.closing(film):
            known = film.get_meta_data()
            return np.asarray(film.get_data(int(known["duration"] * known["fps"] / 2)))
    except (OSError, ValueError, IndexError, RuntimeError):  # as ffmpeg and imageio refuse it
        return None
