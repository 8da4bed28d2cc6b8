"""Calls and evaluations without and with rejoining, as the study counts and keeps them."""

import json
from pathlib import Path

import pytest
from eval_schemas import check

torch = pytest.importorskip("torch")

from asd_policy.eval.studies.bench import rejoining  # noqa: E402

DATA = Path(__file__).resolve().parents[1] / "data"
DRAWN = [
    (torch.tensor([9, 11]), torch.tensor([100, 140])),
    (torch.tensor([8, 11]), torch.tensor([90, 120])),
]


@pytest.fixture
def words(tmp_path, monkeypatch):
    """A command on two tasks, whose chains are counted and not drawn."""
    drawn = []

    class Pair:
        def __init__(self, task, window, observations):
            self.place = task, window

        def draw(self, seed):
            drawn.append((*self.place, seed))
            return DRAWN

    monkeypatch.setattr(rejoining, "Pair", Pair)
    monkeypatch.setattr(rejoining, "BLOCK", 2)
    out = tmp_path / "runs" / "rejoining.json"
    return ["--out", str(out), "--tasks", "lift", "can", "--windows", "16"], out, drawn


def test_blocks_are_kept_and_not_drawn_again(words, capsys):
    given, out, drawn = words
    assert rejoining.main([*given, "--chains", "2"]) == 0
    assert drawn == [("lift", 16, 5000), ("can", 16, 5000)]
    assert rejoining.main([*given, "--chains", "3"]) == 0
    assert drawn[2:] == [("lift", 16, 5001), ("can", 16, 5001)]
    content = json.loads(out.read_text())
    check("rejoining", content, [("cells/0/chains", -1), ("cells/0/calls/without/mean", "9")])
    cell = content["cells"][0]
    assert (cell["task"], cell["window"], cell["chains"]) == ("lift", 16, 4)
    calls, rows = cell["calls"], cell["evaluations"]
    assert calls["without"]["mean"] == 10
    assert calls["rejoining"]["total"] == 38
    assert calls["difference"]["mean"] == -0.5
    assert rows["difference"]["standard_error"] == pytest.approx((100 / 3 / 4) ** 0.5)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "4 chains" in printed


def test_what_cannot_be_is_said_in_a_line(words, capsys, monkeypatch):
    given, out, _ = words
    assert rejoining.main([*given, "--chains", "2"]) == 0
    assert rejoining.main([*given, "--chains", "2", "--seed", "7"]) == 2
    assert "--seed: 5000 there, 7 now" in capsys.readouterr().err
    content = json.loads(out.read_text())
    content["cells"][1]["checkpoint_sha256"] = "0" * 64
    out.write_text(json.dumps(content))
    assert rejoining.main([*given, "--chains", "2"]) == 2  # nothing to draw, and of another policy
    assert "policy's weights: 00000000… there" in " ".join(capsys.readouterr().err.split())
    assert rejoining.main([*given, "--chains", "0"]) == 2
    assert "numbers from 1 on" in capsys.readouterr().err
    out.unlink()
    monkeypatch.undo()
    assert rejoining.main(["--out", str(out), "--observations", str(out.parent)]) == 2
    assert "lift_observations.json holds no observations" in capsys.readouterr().err


def test_both_sides_have_the_same_noise():
    """Without a rejection there is nothing to rejoin: the chains are the same."""
    (calls, rows), (again, _) = rejoining.Pair("lift", 1, DATA).draw(0)
    assert calls.tolist() == again.tolist() == [100] * rejoining.BLOCK
    assert rows.tolist() == calls.tolist()
