"""Films of `eval --video` beside each other, as one animated picture that a web page plays.

python -m asd_policy.eval.rollout.side_by_side ddpm.mp4 asd.mp4 --out both.webp
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from asd_policy.errors import AsdPolicyError
from asd_policy.files import writing


def side_by_side(
    films: Sequence[Path], out: Path, width: int = 240, fps: float = 10.0, seconds: float = 10.0
) -> None:
    """Write the films beside each other, from left to right, as an animated WebP that repeats.

    Args:
        films: as `eval --video` names them; one that ends earlier keeps its last frame.
        out: the picture.
        width: of each film, in pixels.
        fps: frames in a second of the picture; it runs as fast as the films do.
        seconds: the longest that it shows of the films.

    Raises:
        AsdPolicyError: a film cannot be read, or the picture cannot be written.
    """
    if not (fps > 0 and round(fps * seconds) >= 1 and width >= 1):
        raise AsdPolicyError(
            f"expected --fps, --seconds and --width from which a frame comes, got {fps:g}, "
            f"{seconds:g} and {width}"
        )
    columns = [
        list(itertools.islice(_frames(film, width, fps), round(fps * seconds))) for film in films
    ]
    heights = sorted({frame.shape[0] for column in columns for frame in column[:1]})
    if len(heights) > 1:
        raise AsdPolicyError(f"expected films of one shape, got heights of {heights} at one width")
    longest = max(map(len, columns))
    whole = [column + column[-1:] * (longest - len(column)) for column in columns]
    pictures = [Image.fromarray(np.hstack(row)) for row in zip(*whole, strict=True)]
    with writing(out):
        pictures[0].save(
            out,
            format="WEBP",
            save_all=True,
            append_images=pictures[1:],
            duration=round(1000 / fps),
            loop=0,
            quality=60,
            method=6,
        )


def _frames(film: Path, width: int, fps: float) -> Iterator[np.ndarray]:
    """(height, width, 3) uint8, so many of a second of the film."""
    import imageio.v2 as imageio

    try:
        reader: Any = imageio.get_reader(film)
        with contextlib.closing(reader):
            every = reader.get_meta_data()["fps"] / fps
            yield from (_scaled(frame, width) for frame in _thinned(reader, every))
    except (OSError, ValueError, RuntimeError) as error:  # as ffmpeg and imageio refuse it
        raise AsdPolicyError(f"expected a film, got {film}: {error}") from error


def _thinned(frames: Iterable[np.ndarray], every: float) -> Iterator[np.ndarray]:
    """The frame of each moment: some are left out, or shown more than once."""
    shown = 0
    for number, frame in enumerate(frames):
        while int(shown * every) == number:
            yield frame
            shown += 1


def _scaled(frame: np.ndarray, width: int) -> np.ndarray:
    height = round(frame.shape[0] * width / frame.shape[1])
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))


def main(words: Sequence[str] | None = None) -> None:
    """Parse the words of the command line, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("films", nargs="+", type=Path, help="films, from left to right")
    parser.add_argument("--out", type=Path, required=True, help="the animated picture, .webp")
    parser.add_argument("--width", type=int, default=240, help="pixels of each film (240)")
    parser.add_argument("--fps", type=float, default=10.0, help="frames in a second (10)")
    parser.add_argument("--seconds", type=float, default=10.0, help="at most so long (10)")
    given = parser.parse_args(words)
    try:
        side_by_side(given.films, given.out, given.width, given.fps, given.seconds)
    except AsdPolicyError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
