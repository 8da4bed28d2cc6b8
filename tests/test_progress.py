"""What is said of a stage of work while it goes on."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable

import pytest

from asd_policy.progress import Stage


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch) -> Callable[[], Screen]:
    """Makes stderr a terminal of 100 columns; called in the test, after pytest has set its own."""
    pytest.importorskip("rich.progress")  # loaded here: the first clock runs at once

    def make() -> Screen:
        out = Screen()
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setattr(sys, "stderr", out)
        return out

    return make


def test_it_says_what_is_done_at_once_and_its_clock_runs(terminal) -> None:
    screen = terminal()
    with Stage("loading runs[/b]x"):
        time.sleep(0.3)
        assert "loading runs[/b]x" in screen.getvalue()
        assert "0:00 gone" in screen.getvalue()
        time.sleep(1.2)
        assert "0:01 gone" in screen.getvalue()


def test_while_something_is_measured_no_thread_redraws(terminal) -> None:
    screen = terminal()
    with Stage("round", 3, measuring=True) as stage:
        first = screen.getvalue()
        assert "0/3" in first
        time.sleep(0.6)
        assert screen.getvalue() == first
        stage.update(1)
        assert "1/3" in screen.getvalue()


def test_without_a_terminal_it_is_lines(capsys, monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr("asd_policy.progress.time.monotonic", lambda: now[0])
    with Stage("loading the policy"):
        assert capsys.readouterr().err == "loading the policy ...\n"
    with Stage("calibrating") as stage:  # of how many is not known
        now[0] = 12
        stage.update(16, "16 chunks")
    assert capsys.readouterr().err.splitlines() == [
        "calibrating ...",
        "calibrating, 16 chunks, 0:12 gone ...",
    ]
    with Stage("round", 30) as stage:
        for done in range(1, 31):
            now[0] += 1
            stage.update(done)
    assert capsys.readouterr().err.splitlines() == [
        "round 0/30 ...",
        "round 10/30, 0:10 gone, 0:20 left",
        "round 20/30, 0:20 gone, 0:10 left",
        "round 30/30, 0:30 gone, 0:00 left",
    ]


def test_without_rich_it_is_lines_too(terminal, monkeypatch) -> None:
    screen = terminal()
    monkeypatch.setattr("asd_policy.progress.importlib.util.find_spec", lambda name: None)
    with Stage("loading the policy"):
        pass
    assert screen.getvalue() == "loading the policy ...\n"


def test_nothing_is_said_where_nothing_is_to_be_shown(terminal) -> None:
    screen = terminal()
    with Stage("round", 3, show=False) as stage:
        stage.update(1)
        stage.say("a line")
    assert screen.getvalue() == ""


def test_what_was_there_before_says_nothing_of_speed(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr("asd_policy.progress.time.monotonic", lambda: now[0])
    stage = Stage("demonstrations", 200, 100)
    now[0] += 60
    assert stage.times() == "1:00 gone"
    stage.update(110)
    assert stage.times() == "1:00 gone, 9:00 left"


def test_a_stage_that_is_stopped_does_not_say_that_it_ended(capsys) -> None:
    with pytest.raises(KeyboardInterrupt), Stage("filming", 3):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "filming 0/3 ...\n"
