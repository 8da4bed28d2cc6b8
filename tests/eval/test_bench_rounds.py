"""What a round costs beside its network call, as `eval/gpu.py --rounds` measures it."""

import json

import pytest
from eval_schemas import check

torch = pytest.importorskip("torch")

from asd_policy.engine import cuda_graph  # noqa: E402
from asd_policy.errors import EngineError  # noqa: E402
from asd_policy.eval.studies.bench import gpu, rounds  # noqa: E402
from asd_policy.eval.studies.bench.contestants import EngineContestant  # noqa: E402

WORDS = ["--rounds", "--device", "cpu", "--quick", "--networks", "shipped", "--chunks", "2"]


def test_forms_are_measured_kept_and_not_measured_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rounds, "OTHERS", ("ddim-2",))
    seen = []
    draw = EngineContestant.draw

    def watched(self, chunk):
        seen.append((chunk, cuda_graph.PROBABLY_LAST, cuda_graph.SKIPPED, self.ahead))
        return draw(self, chunk)

    monkeypatch.setattr(EngineContestant, "draw", watched)
    words = [*WORDS, "--out", str(tmp_path)]
    assert gpu.main(words) == 0
    content = json.loads((tmp_path / "rounds.json").read_text())
    check("rounds", content, [("cells/0/forms/ddim-2/noise_ms", -1)])
    (found,) = content["cells"]
    assert len(found["forms"]) == 7
    for form in found["forms"].values():
        assert form["chunks"] == 2
        assert form["result_ms"]["p50"] <= form["idle_ms"]["p50"]
    calls = {form["calls"] for name, form in found["forms"].items() if name != "ddim-2"}
    assert len(calls) == 1, "the same noise and conditions"
    measured = {how for chunk, *how in map(tuple, seen) if chunk == 0 for how in [tuple(how)]}
    assert measured == {(*how, ahead) for how in rounds.LAUNCHES.values() for ahead in (0, 1)}
    assert (cuda_graph.PROBABLY_LAST, cuda_graph.SKIPPED) == (0.1, False)
    assert "skipped, before" in capsys.readouterr().out
    assert gpu.main(words) == 0
    assert "skipped, before" not in capsys.readouterr().out
    assert json.loads((tmp_path / "rounds.json").read_text()) == content


def test_a_form_that_fails_here_stops_none_of_the_others(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rounds, "OTHERS", ("ddim-2",))
    warm_up = EngineContestant.warm_up

    def breaks(self):
        if cuda_graph.SKIPPED:
            raise EngineError("capturing a round failed")
        return warm_up(self)

    monkeypatch.setattr(EngineContestant, "warm_up", breaks)
    assert gpu.main([*WORDS, "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "rounds.json").read_text())
    check("rounds", content, [("cells/0/forms/skipped, asked/failed", KeyError)])
    forms = content["cells"][0]["forms"]
    assert [name for name, form in forms.items() if "failed" in form] == [
        "skipped, asked", "skipped, before",
    ]  # fmt: skip
    assert len(forms) == 7
    assert "skipped, asked failed: EngineError: capturing a round" in capsys.readouterr().out


def test_rounds_that_cannot_be_skipped_are_not_called_so(monkeypatch):
    monkeypatch.setattr(cuda_graph, "can_skip", lambda: False)
    with pytest.raises(EngineError, match="no conditional nodes"):
        rounds.launched("skipped", "cuda_graph").__enter__()
    with rounds.launched("ahead", "cuda_graph"):
        assert cuda_graph.PROBABLY_LAST == 2


def test_on_a_gpu_large_batches_are_measured_too():
    cells = rounds.plan(torch.device("cuda"), ["shipped", "chi", "lerobot"])
    assert len({one.key for one in cells}) == len(cells)
    assert cells[0].network == "chi"
    assert {one.batch for one in cells} == {1, 8, 32}
