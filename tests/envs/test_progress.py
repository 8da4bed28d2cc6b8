"""Stages: a live line on a terminal, plain lines elsewhere, and never markup."""

import io

import pytest
from rich.console import Console

from asd_policy.envs import progress
from asd_policy.envs.progress import Stage

PATH = "runs[/b]x"  # as markup it would be an error


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_come_now_and_then(clock, capsys):
    with Stage(f"filming {PATH}", 40, 10, note="starting") as stage:
        for done in range(11, 41):
            clock[0] += 1
            stage.update(done, "dropped 2")
    assert capsys.readouterr().out.splitlines() == [
        f"filming {PATH} 10/40, starting ...",
        f"filming {PATH} 20/40, dropped 2, 0:10 gone, 0:20 left",
        f"filming {PATH} 30/40, dropped 2, 0:20 gone, 0:10 left",
        f"filming {PATH} 40/40, dropped 2, 0:30 gone, 0:00 left",
    ]


def test_what_was_there_before_says_nothing_of_speed(clock):
    stage = Stage("demonstrations", 200, 100)
    clock[0] += 60
    assert stage.times() == "1:00 gone"
    stage.update(110)
    assert stage.times() == "1:00 gone, 9:00 left"


def test_a_stage_that_is_stopped_does_not_say_that_it_ended(capsys):
    with pytest.raises(KeyboardInterrupt), Stage("filming", 3):
        raise KeyboardInterrupt
    assert capsys.readouterr().out == "filming 0/3 ...\n"


def test_nothing_is_shown_where_nothing_is_to_be(capsys):
    with Stage("filming", 3, show=False) as stage:
        stage.update(3)
        stage.say("done")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("total", [None, 3])
def test_a_terminal_has_a_line_with_a_clock(monkeypatch, total):
    screen = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda: Console(file=screen, force_terminal=True, width=80)
    )
    monkeypatch.setenv("TERM", "xterm")
    with Stage(f"filming {PATH}", total) as stage:
        stage.update(0, note=PATH)
        stage.say(f"Stopping {PATH}")
    said = screen.getvalue()
    assert said.count(PATH) >= 3
    assert f"Stopping {PATH}" in said
    assert "0:00 gone" in said
    assert ("0/3" in said) == (total == 3)
