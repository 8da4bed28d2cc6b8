"""What is shown before a command's first figure."""

from __future__ import annotations

import io
import time

from rich.console import Console

from asd_policy.eval.stages import PlainStages, Stages, TerminalStages, stages_on


def screen() -> tuple[io.StringIO, Console]:
    out = io.StringIO()
    return out, Console(file=out, force_terminal=True, width=80)


def test_a_stage_says_what_it_does_at_once_with_a_running_clock() -> None:
    out, console = screen()
    stages = stages_on(console)
    assert isinstance(stages, TerminalStages)
    with stages.stage("Loading runs[/b]x"):
        assert "Loading runs[/b]x …" in out.getvalue()
        time.sleep(1.5)
    assert "0:00:00" in out.getvalue()
    assert "0:00:01" in out.getvalue()


def test_turns_are_redrawn_between_turns_alone() -> None:
    out, console = screen()
    with stages_on(console).turns("measuring", 3) as done:
        first = out.getvalue()
        assert "0/3" in first
        time.sleep(0.6)
        assert out.getvalue() == first, "no thread that redraws"
        done()
        assert "1/3" in out.getvalue()


def test_without_a_terminal_a_line_for_each_stage(monkeypatch) -> None:
    said: list[str] = []
    console = Console(file=io.StringIO(), width=80)
    assert isinstance(stages_on(console), PlainStages)
    now = iter([0.0, 3.2, 10.0, 12.0, 21.0, 21.0, 22.0])
    monkeypatch.setattr("asd_policy.eval.stages.time.perf_counter", lambda: next(now))
    stages = PlainStages(said.append)
    with stages.stage("Loading the policy"):
        assert said == ["Loading the policy …"]
    assert said[1:] == ["  3 s"]
    with stages.turns("round", 3) as done:
        for _ in range(3):
            done()
    assert said[2:] == ["  round 2/3"]


def test_nobody_need_be_told() -> None:
    with Stages().stage("Loading"), Stages().turns("round", 3) as done:
        done()
