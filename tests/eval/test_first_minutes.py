"""The study of the first command: what goes wrong is said before minutes of it have run."""

from __future__ import annotations

from pathlib import Path

import pytest

from asd_policy.errors import AsdPolicyError, InputError, OutputError
from asd_policy.eval.studies.bench import first_minutes


def test_what_cannot_be_kept_or_run_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_minutes, "run_once", lambda *_: pytest.fail("ran"))
    with pytest.raises(InputError, match="--runs and --episodes are 1 or more; got 0, 4"):
        first_minutes.main(runs=0, out=tmp_path / "x.json")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        first_minutes.main(runs=1, out=tmp_path / "file" / "x.json")


def test_a_run_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_minutes.sys, "executable", "/bin/ls")
    with pytest.raises(AsdPolicyError, match=r"eval --episodes 1.*` failed: .*ls"):
        first_minutes.run_once(1, tmp_path)
