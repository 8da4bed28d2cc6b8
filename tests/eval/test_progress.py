"""Progress: readable anywhere, and no thread that would disturb what is being timed."""

import dataclasses
import io
import threading

import pytest
from rich.console import Console

from asd_policy.eval import progress as module
from asd_policy.eval.progress import RunProgress
from asd_policy.eval.records import Episode


def episode(sampler: str, seed: int, success: bool = True) -> Episode:
    return Episode(
        sampler, seed, success, 10, 1.0, False, 1, 0, 3.0, 0.0, 2.0, 1.0, 0.0,
        [], [], [], [0.1] * 10,
    )  # fmt: skip


@pytest.fixture
def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=100)


@pytest.fixture
def pipe():
    return Console(file=io.StringIO(), width=100)


def test_the_bar_has_no_thread(terminal):
    before = threading.enumerate()
    with RunProgress(terminal, ["asd", "ddpm"], 3) as progress:
        progress.begin("asd", 7)
        progress.tick()
        assert threading.enumerate() == before


def test_the_bar_shows_what_was_done_and_what_is_running(terminal):
    with RunProgress(terminal, ["asd", "ddpm"], 3) as progress:
        progress.begin("asd", 7)
        progress.episode(episode("asd", 7))
        progress.begin("ddpm", 7)
        progress.episode(episode("ddpm", 7, success=False))
        progress.begin("ddpm", 8)
        progress.episode(episode("ddpm", 8))
    shown = terminal.file.getvalue()
    assert "3/6" in shown
    assert "asd 1/1  ddpm 1/2" in shown
    assert "ddpm, seed 8" in shown
    assert "0:09 left" in shown  # 2 of asd and 1 of ddpm to go, 3 s each


def test_the_bar_is_redrawn_a_few_times_a_second_only(terminal, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    with RunProgress(terminal, ["asd"], 3) as progress:
        progress.begin("asd", 7)
        size = len(terminal.file.getvalue())
        for _ in range(100):
            now[0] += 0.002
            progress.tick()
        assert len(terminal.file.getvalue()) == size
        now[0] += 0.1
        progress.tick()
        assert len(terminal.file.getvalue()) > size


def test_a_pipe_gets_plain_lines_now_and_then(pipe, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    with RunProgress(pipe, ["asd"], 20) as progress:
        for seed in range(20):
            progress.begin("asd", seed)
            for _ in range(10):
                progress.tick()
            now[0] += 3.0
            progress.episode(episode("asd", seed))
    shown = pipe.file.getvalue()
    assert "\x1b" not in shown
    assert "\r" not in shown
    lines = shown.splitlines()
    assert 4 <= len(lines) <= 6  # one in 10 s, of 60 s, and the last
    assert " ".join(lines[-1].split()) == "20/20 episodes asd 20/20 1:00 gone, 0:00 left"


@pytest.mark.parametrize("where", ["terminal", "pipe"])
def test_episodes_of_an_earlier_process_count_from_the_first_moment(where, request):
    console = request.getfixturevalue(where)
    progress = RunProgress(console, ["asd", "ddpm"], 3)
    for name in ("asd", "ddpm"):
        progress.kept(episode(name, 0))
    progress.kept(episode("asd", 1, success=False))
    with progress:
        shown = console.file.getvalue()
        assert "3/6" in shown
        assert "0/6" not in shown
        assert "asd 1/2  ddpm 1/1" in shown
        assert "0:09 left" in shown, "as long as they took then: 1 of asd and 2 of ddpm, 3 s each"
        progress.begin("ddpm", 1)


def test_the_time_left_is_of_this_process_as_soon_as_it_has_one(pipe):
    progress = RunProgress(pipe, ["asd", "ddpm"], 3)
    assert progress._left_s() is None
    progress.kept(episode("asd", 0))
    assert progress._left_s() is None, "nothing is known of ddpm"
    progress.kept(dataclasses.replace(episode("ddpm", 0), wall_s=30.0))
    assert progress._left_s() == 2 * 3.0 + 2 * 30.0
    with progress:
        progress.episode(dataclasses.replace(episode("ddpm", 1), wall_s=5.0))
        assert progress._left_s() == 2 * 3.0 + 5.0
        for name, seed in (("ddpm", 2), ("asd", 1), ("asd", 2)):
            progress.episode(episode(name, seed))
    assert "6/6 episodes  asd 3/3  ddpm 3/3" in pipe.file.getvalue()
