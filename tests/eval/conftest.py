"""Makes `eval_standin` importable, here and in the processes that tests start."""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

SUPPORT = Path(__file__).parent / "support"
sys.path.insert(0, str(SUPPORT))


@pytest.fixture
def quiet():
    """A console that keeps what is printed: quiet.file.getvalue()."""
    return Console(file=io.StringIO(), width=100)


@pytest.fixture
def script(tmp_path) -> Callable[[str], list[str]]:
    """Write a program that may import `eval_standin`; returns the command that runs it."""

    def write(body: str) -> list[str]:
        path = tmp_path / "program.py"
        path.write_text(f"import sys\nsys.path.insert(0, {str(SUPPORT)!r})\n{body}")
        return [sys.executable, str(path)]

    return write
