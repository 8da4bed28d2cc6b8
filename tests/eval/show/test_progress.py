"""How far a run is: readable anywhere, and no thread that would disturb what is being timed."""

import dataclasses
import io
import sys
import threading

import pytest

from asd_policy import progress as module
from asd_policy.eval.runs.episode import Episode
from asd_policy.eval.show.progress import RunProgress


def episode(sampler: str, seed: int, success: bool = True) -> Episode:
    return Episode(
        sampler, seed, success, 10, 1.0, False, 1, 0, 3.0, 0.0, 2.0, 1.0, 0.0,
        [], [], [], [0.1] * 10,
    )  # fmt: skip


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def show(monkeypatch):
    """Puts a stream in the place of stderr; called in the test, after pytest has set its own."""

    def put(stream: io.StringIO) -> io.StringIO:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return put


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_the_line_has_no_thread(show):
    show(Screen())
    before = threading.enumerate()
    with RunProgress(["asd", "ddpm"], 3) as progress:
        progress.begin("asd", 7)
        progress.tick()
        assert set(threading.enumerate()) <= set(before)


def test_the_line_shows_what_was_done_and_what_is_running(show, clock):
    screen = show(Screen())
    with RunProgress(["asd", "ddpm"], 3) as progress:
        progress.begin("asd", 7)
        progress.episode(episode("asd", 7))
        progress.begin("ddpm", 7)
        progress.episode(episode("ddpm", 7, success=False))
        progress.begin("ddpm", 8)
        clock[0] += 1.0
        progress.tick()
        assert "ddpm, seed 8" in screen.getvalue()
        progress.episode(episode("ddpm", 8))
    shown = screen.getvalue()
    assert "3/6" in shown
    assert "asd 1/1  ddpm 1/2" in shown
    assert "0:09 left" in shown  # 2 of asd and 1 of ddpm to go, 3 s each
    assert "seed" not in shown[shown.rindex("3/6") - 60 :], "nothing runs any more"


def test_the_line_is_redrawn_a_few_times_a_second_only(show, clock):
    screen = show(Screen())
    with RunProgress(["asd"], 3) as progress:
        progress.begin("asd", 7)
        size = len(screen.getvalue())
        for _ in range(100):
            clock[0] += 0.002
            progress.tick()
        assert len(screen.getvalue()) == size
        clock[0] += 0.1
        progress.tick()
        assert len(screen.getvalue()) > size


def test_a_pipe_gets_plain_lines_now_and_then(show, clock):
    pipe = show(io.StringIO())
    with RunProgress(["asd"], 20) as progress:
        for seed in range(20):
            progress.begin("asd", seed)
            for _ in range(10):
                progress.tick()
            clock[0] += 3.0
            progress.episode(episode("asd", seed))
    shown = pipe.getvalue()
    assert "\x1b" not in shown
    assert "\r" not in shown
    lines = shown.splitlines()
    assert lines[0] == "episodes 0/20 ..."
    assert 5 <= len(lines) <= 7  # one in 10 s, of 60 s, the first and the last
    assert lines[-1] == "episodes 20/20, asd 20/20, 1:00 gone, 0:00 left"


@pytest.mark.parametrize("stream", [Screen, io.StringIO])
def test_episodes_of_an_earlier_process_count_from_the_first_moment(show, stream):
    screen = show(stream())
    kept = [episode("asd", 0), episode("ddpm", 0), episode("asd", 1, success=False)]
    with RunProgress(["asd", "ddpm"], 3, kept) as progress:
        shown = screen.getvalue()
        assert "3/6" in shown
        assert "0/6" not in shown
        assert "asd 1/2  ddpm 1/1" in shown
        assert "0:09 left" in shown, "as long as they took then: 1 of asd and 2 of ddpm, 3 s each"
        progress.begin("ddpm", 1)


def test_the_time_left_is_of_this_process_as_soon_as_it_has_one(show):
    pipe = show(io.StringIO())
    assert RunProgress(["asd", "ddpm"], 3).left_s() is None
    kept = [episode("asd", 0)]
    assert RunProgress(["asd", "ddpm"], 3, kept).left_s() is None, "nothing is known of ddpm"
    kept.append(dataclasses.replace(episode("ddpm", 0), wall_s=30.0))
    progress = RunProgress(["asd", "ddpm"], 3, kept)
    assert progress.left_s() == 2 * 3.0 + 2 * 30.0
    with progress:
        progress.episode(dataclasses.replace(episode("ddpm", 1), wall_s=5.0))
        assert progress.left_s() == 2 * 3.0 + 5.0
        for name, seed in (("ddpm", 2), ("asd", 1), ("asd", 2)):
            progress.episode(episode(name, seed))
    assert "episodes 6/6, asd 3/3  ddpm 3/3" in pipe.getvalue()
