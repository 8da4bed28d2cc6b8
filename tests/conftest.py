"""Fixtures for the tests of commands."""

import re
from collections.abc import Callable
from typing import Any

import pytest

Outcome = tuple[int, str, str]


@pytest.fixture
def run(capsys) -> Callable[..., Outcome]:
    """run(*words) → (exit status, stdout, stderr) of a command, in this process."""
    from asd_policy import cli  # needs tyro, which tests of the core and of a GPU do without

    def command(*words: Any) -> Outcome:
        try:
            status = cli.main([str(word) for word in words])
        except SystemExit as leave:  # tyro's own complaints
            status = int(leave.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return command


@pytest.fixture
def refused(run) -> Callable[..., None]:
    """refused(message, *words): the command exits with 2 and says `message` (a regex), with no
    traceback."""

    def check(message: str, *words: Any) -> None:
        status, _, errors = run(*words)
        plain = " ".join(re.sub(r"[│╭╮╰╯─]", " ", errors).split())
        assert status == 2, errors
        assert re.search(message, plain), plain
        assert "Traceback" not in errors

    return check
