"""What a film says above its picture."""

import dataclasses

import imageio.v2 as imageio
import numpy as np
import pytest

from asd_policy.eval.rollout import annotate
from asd_policy.eval.rollout.annotate import ACCEPTED, REJECTED, annotated
from asd_policy.eval.rollout.video import Recorder
from asd_policy.policy import ChunkStats


def chunk(accepted, decided, latency_s=0.0914, calls=10):
    accepted, decided = np.array(accepted), np.array(decided)
    rejections = int((decided - accepted).sum())
    return ChunkStats(
        latency_s, 1, "asd", 5, calls, 20, rejections, accepted, decided, 0.0, 0.09, 0.0, 0.0
    )


@pytest.fixture
def said(monkeypatch):
    """The texts that are drawn."""
    texts = []
    original = annotate.ImageDraw.ImageDraw.text

    def keep(self, place, text, **options):
        texts.append(text)
        return original(self, place, text, **options)

    monkeypatch.setattr(annotate.ImageDraw.ImageDraw, "text", keep)
    return texts


def strip(picture, steps):
    """Colours (steps, 3) along the bottom of the strip, in the middle of each step's column."""
    rows = np.flatnonzero((picture[:, :, None] == [ACCEPTED, REJECTED]).all(-1).any((1, 2)))
    width = picture.shape[1]
    edges = np.linspace(9, width - 9, steps + 1)
    return picture[rows.max() - 1, np.round((edges[:-1] + edges[1:]) / 2).astype(int)]


def test_the_picture_stays_and_the_bar_is_above_it():
    frame = np.random.default_rng(0).integers(0, 255, (480, 480, 3), np.uint8)
    picture = annotated(frame, "lift, seed 3, asd", 7, chunk([1] * 10, [1] * 10))
    assert np.array_equal(picture[-480:], frame)
    assert picture.shape[0] > 480
    assert picture.shape[1] == 480
    assert picture.dtype == np.uint8


@pytest.mark.parametrize("size", [(32, 32), (97, 131), (480, 640)])
def test_sides_are_even_as_films_need(size):
    picture = annotated(np.zeros((*size, 3), np.uint8), "lift, seed 3, asd", 0, None)
    assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0
    assert picture.shape[1] >= 256


def test_it_says_whose_episode_which_step_and_what_the_chunk_cost(said):
    frame = np.zeros((480, 480, 3), np.uint8)
    annotated(frame, "lift, seed 3, asd", 7, chunk([1, 1, 0, 1], [1, 1, 1, 1]))
    assert said == [
        "lift, seed 3, asd", "step 7", "chunk 91 ms, 10 calls", "3 accepted", "1 rejected",
    ]  # fmt: skip
    said.clear()
    annotated(frame, "lift, seed 3, ddpm", 8, chunk([0, 0], [0, 0], calls=1))
    assert said == ["lift, seed 3, ddpm", "step 8", "chunk 91 ms, 1 call"]


def test_the_strip_shows_each_step():
    accepted, decided = [1, 1, 0, 1, 0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0, 1, 1, 1, 0]
    frame = np.full((480, 480, 3), 255, np.uint8)
    colours = strip(annotated(frame, "t", 0, chunk(accepted, decided)), 10)
    expected = [
        ACCEPTED if a else REJECTED if d else None for a, d in zip(accepted, decided, strict=True)
    ]
    for colour, wanted in zip(colours, expected, strict=True):
        if wanted is None:
            assert tuple(colour) not in (ACCEPTED, REJECTED)
        else:
            assert tuple(colour) == wanted


def test_a_hundred_steps_fit_and_the_rejected_are_seen():
    decided = np.ones(100, int)
    accepted = decided.copy()
    accepted[[3, 50, 98]] = 0
    picture = annotated(np.zeros((480, 480, 3), np.uint8), "t", 0, chunk(accepted, decided))
    colours = [tuple(colour) for colour in strip(picture, 100)]
    assert [i for i, colour in enumerate(colours) if colour == REJECTED] == [3, 50, 98]
    assert colours.count(ACCEPTED) == 97


def test_the_recorder_counts_the_steps_and_passes_the_chunk_on(tmp_path, monkeypatch):
    drawn = []

    def keep(frame, title, step, chunk):
        drawn.append((title, step, chunk and dataclasses.replace(chunk)))
        return annotated(frame, title, step, chunk)

    monkeypatch.setattr(annotate, "annotated", keep)
    recorder = Recorder(tmp_path, "lift_seed3_asd", 20, title="lift, seed 3, asd")
    first = chunk([1], [1])
    for shown in (None, first, first):
        recorder.add(np.zeros((32, 32, 3), np.uint8), shown)
    path = recorder.finish(success=True)
    assert path.name == "lift_seed3_asd_success.mp4"
    assert [(title, step) for title, step, _ in drawn] == [
        ("lift, seed 3, asd", i) for i in range(3)
    ]
    assert [shown is None for *_, shown in drawn] == [True, False, False]
    with imageio.get_reader(path) as film:
        assert len([frame for frame in film]) == 3  # noqa: C416 (its len() is infinite)
