"""`python -m asd_policy.integrations.robomimic check`, on the release that is installed."""

from __future__ import annotations

import pytest

pytest.importorskip("robomimic", reason="needs the extra 'robomimic'")
pytest.importorskip("robosuite")

import asd_policy.integrations.robomimic as asd
from asd_policy.integrations.robomimic import __main__ as command
from asd_policy.integrations.robomimic import check


def test_nothing_differs(capsys) -> None:
    """Rows that cannot be tried say so: on 0.3, those of a release with a diffusion policy."""
    status = command.main(["check"])
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:27].strip(): line[27:36].strip() for line in lines if line[27:36].strip() in
            (check.OK, check.NONE, check.DIFFERS)}  # fmt: skip
    assert len(rows) >= 28, rows
    differing = [name for name, row in rows.items() if row == check.DIFFERS]
    assert not differing, "\n".join(lines)
    assert status == 0
    skipped = {name for name, row in rows.items() if row == check.NONE} - {"pictures, upright"}
    assert skipped == ({"rot_6d", "batched"} if asd.VERSION < (0, 5) else set())


def test_a_difference_is_found(monkeypatch, capsys) -> None:
    """Another chain than robomimic's, an exception, and the exit status."""

    def broken() -> tuple[str, str]:
        raise RuntimeError("of another library\nmore")

    monkeypatch.setattr(check, "_loops", lambda: {"one": broken, "two": lambda: (check.OK, "fine")})
    monkeypatch.setattr(check, "FILES", {})
    monkeypatch.setattr(check, "ENVIRONMENTS", {})
    assert command.main(["check"]) == 1
    out = capsys.readouterr().out
    assert "one                        DIFFERS  RuntimeError: of another library\n" in out
    assert "two                        ok       fine\n" in out
    assert "Something differs." in out
    assert check.verdict([1.0, 2.0], [1.0, 2.1], "x")[0] == check.DIFFERS
    assert check.verdict([1.0], [1.0, 2.0], "x")[0] == check.DIFFERS
