"""Runs a module of these tests in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]


def run_module(name: str, *words: str, cache: Path, **environment: str) -> dict[str, Any]:
    """What ``python -m name words`` prints, as JSON."""
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", name, *words],
        cwd=TESTS, capture_output=True, text=True, check=False, timeout=500,
        env={**kept, "OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": str(cache), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
