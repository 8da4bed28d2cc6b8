"""Fixtures for the tests of commands."""

import os
import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

Outcome = tuple[int, str, str]

try:
    from hypothesis import settings
except ImportError:  # tests of the core and of a GPU do without
    pass
else:  # the same examples in every run: a change is not refused for an old fault
    settings.register_profile("repeatable", derandomize=True)
    settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="session")
def ctrl_c_is_heard() -> None:
    """Also by processes that tests start, where a shell started the tests in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def cache_of_the_tests() -> Iterator[None]:
    """What networks cost is kept in a folder of the tests' own, by child processes too."""
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("ASD_POLICY_CACHE")
        os.environ["ASD_POLICY_CACHE"] = folder
        yield
        if before is None:
            del os.environ["ASD_POLICY_CACHE"]
        else:
            os.environ["ASD_POLICY_CACHE"] = before


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
