"""Episodes as mp4, streamed to a temporary name and named by their outcome when they end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from asd_policy.errors import AsdPolicyError

if TYPE_CHECKING:
    from asd_policy.eval.slots import Slot


class Recorder:
    """One episode's film. Frames go to a hidden file; `finish` gives it its name."""

    def __init__(self, folder: Path, stem: str, fps: float):
        import imageio.v2 as imageio

        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._stem = folder, stem
        # imageio knows the format by the name's end, so the end stays .mp4
        self._partial = folder / f".{stem}.part.mp4"
        # libx264 takes even sizes only: round up to 2, not to imageio's 16
        self._writer = imageio.get_writer(self._partial, fps=fps, macro_block_size=2)

    def add(self, frame: np.ndarray) -> None:
        """Append one (height, width, 3) uint8 frame."""
        self._writer.append_data(frame)

    def finish(self, success: bool) -> Path:
        """Close the film and name it <stem>_<outcome>.mp4."""
        self._writer.close()
        path = self._folder / f"{self._stem}_{'success' if success else 'failure'}.mp4"
        os.replace(self._partial, path)
        return path

    def discard(self) -> None:
        """Close and remove the film of an episode that did not end."""
        self._writer.close()
        self._partial.unlink(missing_ok=True)


def check_rendering(slot: Slot) -> None:
    """Draw one frame of a freshly reset environment, or raise AsdPolicyError saying what is
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
