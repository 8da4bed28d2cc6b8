"""Films (mp4), written picture by picture while an episode runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from asd_policy.envs.workers import interrupts_held


class FilmWriter:
    """A film at `path`, whose name must end in .mp4, of `fps` pictures a second.

    Pictures are (height, width, 3) uint8, all of one size; H.264 takes even sizes, so an odd one is
    rounded up by a pixel.
    """

    def __init__(self, path: Path, fps: float) -> None:
        import imageio.v2 as imageio

        # imageio's own rounding is to 16
        self._writer: Any = imageio.get_writer(path, fps=fps, macro_block_size=2)
        self._started = False

    def add(self, picture: np.ndarray) -> None:
        """Append one picture."""
        if self._started:
            self._writer.append_data(picture)
            return
        with interrupts_held():  # the first one starts ffmpeg, by a fork that would lose them
            self._writer.append_data(picture)
        self._started = True

    def close(self) -> None:
        """Write what is left, and wait for it."""
        self._writer.close()

    def __enter__(self) -> FilmWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
