"""Forms of a network's layers side by side, as `eval/gpu.py --layers` measures them."""

import json
import time

import pytest
from eval_schemas import check

torch = pytest.importorskip("torch")

from asd_policy.eval.studies.bench import gpu, layers  # noqa: E402
from asd_policy.eval.studies.bench.layers import plan  # noqa: E402
from asd_policy.eval.studies.bench.training import OutOfTime  # noqa: E402

WORDS = ["--layers", "--device", "cpu", "--quick", "--networks", "shipped", "--chunks", "1"]


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(layers, "SAMPLERS", ("ddim-2", "ddim-4"))


def test_cells_are_measured_kept_and_not_measured_again(short, tmp_path, capsys):
    words = [*WORDS, "--out", str(tmp_path)]
    assert gpu.main([*words, "--minutes", "0"]) == 1
    assert "run the same command to go on" in capsys.readouterr().out
    assert gpu.main(words) == 0
    content = json.loads((tmp_path / "layers.json").read_text())
    check("layers", content)
    call, chunk = content["cells"]
    assert call["rows"] == [1, 4]
    assert call["bitwise"]
    assert max(call["error"]) < 1e-4
    assert chunk["layers_used"] == "products"
    assert {name: c["calls"] for name, c in chunk["samplers"].items()} == {
        "ddim-2": 2.0, "ddim-4": 4.0,
    }  # fmt: skip
    assert "ddim-4" in capsys.readouterr().out
    assert gpu.main(words) == 0
    assert "ddim-4" not in capsys.readouterr().out
    assert json.loads((tmp_path / "layers.json").read_text()) == content
    assert gpu.main([*words[:-3], "2", *words[-2:]]) == 2  # other chunks
    assert "chunks" in capsys.readouterr().err


def test_a_cell_that_fails_is_said_and_tried_again(short, tmp_path, capsys, monkeypatch):
    words = [*WORDS, "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(layers, "prepared_for", lambda one, subject: 1 / 0)
        assert gpu.main(words) == 1
    assert "failed: ZeroDivisionError" in capsys.readouterr().out
    content = json.loads((tmp_path / "layers.json").read_text())
    check("layers", content)
    assert [("failed" in c, c["kind"]) for c in content["cells"]] == [
        (True, "call"), (False, "chunk"),
    ]  # fmt: skip
    assert gpu.main(words) == 0
    assert all(
        "failed" not in c for c in json.loads((tmp_path / "layers.json").read_text())["cells"]
    )


def test_a_form_that_gives_nan_is_a_cell_that_fails(short, tmp_path, monkeypatch):
    work = layers.Call._work
    nan = lambda self, *given: work(self, *given).fill_(float("nan"))  # noqa: E731
    monkeypatch.setattr(layers.Call, "_work", nan)
    assert gpu.main([*WORDS, "--out", str(tmp_path)]) == 1
    content = json.loads((tmp_path / "layers.json").read_text())
    check("layers", content)
    call, chunk = content["cells"]
    assert "a call on 1 rows gave NaN" in call["failed"]
    assert chunk["samplers"]


def test_on_a_gpu_both_forms_of_all_networks_are_measured():
    cells = plan(torch.device("cuda"), ["shipped", "chi", "lerobot"])
    assert len({one.key for one in cells}) == len(cells)
    assert cells[0].network == "chi"
    for network in ("shipped", "chi", "lerobot"):
        for precision in ("bf16", "tf32"):
            for kind in ("call", "chunk"):
                found = {
                    one.layers for one in cells
                    if (one.kind, one.network, one.precision) == (kind, network, precision)
                }  # fmt: skip
                assert found == {"fused", "whole"}
    assert {one.batch for one in cells} == {1, 8, 32}
    assert layers.ROWS == (1, 2, 4, 8, 16, 32, 64, 128)


def test_overlapping_launches_are_switched_off_again():
    with layers.overlapping(True):
        assert layers.whole.PDL
    assert not layers.whole.PDL


def test_compiling_ends_with_its_time(capfd):
    """What is not done is left to the calls that meet it: a run has minutes, not hours."""
    script, said = ["-c", "import sys, time; time.sleep(60 * ('bf16' in sys.argv[2]))"], []
    start = time.monotonic()
    layers.compile_ahead(script, ["chi"], said.append, start + 3)
    assert time.monotonic() - start < 30
    assert "no time for all of chi:bf16:apart, chi:bf16:overlapping" in said[0]
    assert "tf32" not in said[0]


def test_of_two_networks_that_are_trained_first_there_is_time_left_to_measure(monkeypatch):
    monkeypatch.setattr(gpu, "load_demonstrations", lambda path: None)
    asked = []

    def train(minutes, *given):
        asked.append((minutes, given[-1]))
        raise OutOfTime("enough")

    monkeypatch.setattr(gpu, "train_for", train)
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    words = ["--layers", "--device", "cpu", "--networks", "chi", "lerobot", "--data", "any.npz"]
    assert gpu.main([*words, "--minutes", "9"]) == 1
    assert gpu.main([*words, "--minutes", "9", "--train-minutes", "4"]) == 1
    assert asked == [(pytest.approx(1.8), 640.0), (4.0, 640.0)]


def test_a_machine_without_a_profiler_keeps_its_times():
    call = object.__new__(layers.Call)
    call.device, call.work = torch.device("cuda"), lambda: None
    with pytest.MonkeyPatch.context() as patch:

        def refuse(**_):
            raise AssertionError("No activities specified for the profiler")

        patch.setattr(layers.torch.profiler, "profile", refuse)
        assert call.kernels() is None


def test_calls_are_timed_on_the_gpu_that_they_run_on(monkeypatch):
    asked = []

    class Event:
        def __init__(self, enable_timing):
            self.elapsed_time, self.synchronize = lambda end: 1.5, lambda: None

        def record(self, stream=None):
            asked.append(stream)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", str)
    monkeypatch.setattr(layers, "synchronize", lambda device: None)
    call = object.__new__(layers.Call)
    call.device, call.replay = torch.device("cuda:1"), lambda: None
    assert call.milliseconds(2) == [1.5, 1.5]
    assert set(asked) == {"cuda:1"}
