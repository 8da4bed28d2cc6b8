"""What a film says above its picture: whose episode, the step, and what the last chunk cost."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from asd_policy.errors import counted
from asd_policy.eval.runs.formats import duration

if TYPE_CHECKING:
    from asd_policy.policy import ChunkStats

# Light enough to be read on black; told apart by colour-blind viewers, and by height as well.
_BACK, _TEXT, _FAINT = (16, 21, 27), (232, 237, 242), (70, 80, 92)
ACCEPTED, REJECTED = (86, 180, 233), (230, 97, 0)
_LEAST_WIDTH = 256  # below it, no line of text would fit: the picture is set into the middle


def annotated(
    frame: np.ndarray, title: str, step: int, chunk: ChunkStats | None = None
) -> np.ndarray:
    """The frame with a bar above it. (Below it, a player's controls would cover the bar.)

    Args:
        frame: (height, width, 3) uint8.
        title: task, seed and sampler.
        step: control steps done so far.
        chunk: the last chunk sampled for this episode; None before the first.

    The strip has a column for each denoising step, from noise (left) to action (right): tall for an
    accepted draft, short and of another colour for a rejected one, a line where none was decided
    (a sampler that does not draft has such a line only).

    Returns:
        (bar + height, width or more, 3) uint8, with even sides, as films need.
    """
    height, width = frame.shape[:2]
    wide = max(width + width % 2, _LEAST_WIDTH)
    line = _line_height(wide)
    bar = round(6.4 * line)
    bar += (height + bar) % 2
    canvas = Image.new("RGB", (wide, bar + height), _BACK)
    canvas.paste(Image.fromarray(frame), ((wide - width) // 2, bar))
    draw, font = ImageDraw.Draw(canvas), _font(line)
    left, right, top = line // 2, wide - line // 2, line // 2
    draw.text((left, top), title, fill=_TEXT, font=font)
    draw.text((right, top), f"step {step}", fill=_TEXT, font=font, anchor="ra")
    if chunk is None:
        return np.asarray(canvas)
    cost = f"chunk {duration(1e3 * chunk.latency_s)}, {counted(chunk.calls, 'call')}"
    draw.text((left, top + 1.35 * line), cost, fill=_TEXT, font=font)
    accepted, decided = np.asarray(chunk.accepted), np.asarray(chunk.decided)
    if decided.any():
        legend = f"{accepted.sum()} accepted", f"{chunk.rejections} rejected"
        draw.text((left, top + 2.7 * line), legend[0], fill=ACCEPTED, font=font)
        draw.text((right, top + 2.7 * line), legend[1], fill=REJECTED, font=font, anchor="ra")
    _strip(draw, (left, top + 4.2 * line, right, top + 5.2 * line), accepted, decided)
    return np.asarray(canvas)


def _strip(
    draw: ImageDraw.ImageDraw,
    box: tuple[float, float, float, float],
    accepted: np.ndarray,
    decided: np.ndarray,
) -> None:
    left, top, right, bottom = box
    draw.line((left, bottom, right, bottom), fill=_FAINT)
    edges = np.linspace(left, right, len(decided) + 1)
    for step in np.flatnonzero(decided):
        ends = round(edges[step]), max(round(edges[step]), round(edges[step + 1]) - 1)
        whole = accepted[step] == decided[step]
        start = top if whole else (top + bottom) / 2
        draw.rectangle((ends[0], start, ends[1], bottom), fill=ACCEPTED if whole else REJECTED)


def _line_height(width: int) -> int:
    """Text grows with the picture."""
    return max(11, width // 26)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
