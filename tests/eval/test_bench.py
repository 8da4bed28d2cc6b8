"""`asd-policy bench` as a user types it, on a small untrained policy."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from eval_schemas import check

from asd_policy import cli
from asd_policy.data.replay import load_npz, save_npz
from asd_policy.errors import DatasetError, EngineError
from asd_policy.eval.studies.bench import contestants, figures, gpu, training
from asd_policy.policy import save_checkpoint
from reference.tiny import tiny_checkpoint, tiny_replay

ROOT = Path(__file__).resolve().parents[2]
# What bench.json may not hold.
WRONG = [
    ("settings/windows", ["0"]),
    ("settings/chunks", KeyError),
    ("settings/more", 1),
    ("machine", []),
    ("machine/0/cpu", None),
    ("machine/0/more", 1),
    ("ceilings/matmul_flop_per_s", {"fp8": 1.0}),
    ("costs/0/rows", ["1"]),
    ("costs/0/engine", KeyError),
    ("cells/0/latency_ms/p50", KeyError),
    ("cells/0/latencies_ms", []),
    ("cells/0/split_share/network", 1.5),
    ("cells/0/speedup/over_ddpm", "2x"),
    ("cells/0/window", "wide"),
    ("cells/0/error", "but measured"),
    ("cells/0/more", 1),
    ("complete", "yes"),
]
EVERY = ("eager-loop", "ddpm", "asd", "asd-paper", "asd-memory", "paradigms", "ddim-4")


@pytest.fixture
def checkpoint(tmp_path):
    return save_checkpoint(tmp_path / "tiny", tiny_checkpoint())


@pytest.fixture
def words(checkpoint, tmp_path):
    """Of a quick benchmark of it."""
    common = ["--device", "cpu", "--threads", "1", "--quick", "--out", tmp_path / "out"]
    return ["bench", "--networks", checkpoint, *common]


@pytest.fixture(autouse=True)
def little_calibration(monkeypatch):
    monkeypatch.setattr(contestants, "CALIBRATION_CHAINS", 2)


@pytest.fixture
def no_figures(monkeypatch):
    """For tests of other things: drawing takes seconds."""
    monkeypatch.setattr(figures, "save_figures", lambda content, folder: [])


def content_of(folder, wrong=()):
    content = json.loads((folder / "bench.json").read_text())
    check("bench", content, wrong)
    return content


def by_sampler(cells):
    return {cell["sampler"]: cell for cell in cells}


# --- a whole run --------------------------------------------------------------------------------


def test_a_run_prints_tables_and_keeps_every_figure(run, words, tmp_path, checkpoint):
    status, output, errors = run(*words, "--windows", 4, "--samplers", *EVERY)
    assert status == 0, errors
    assert all(name in output for name in EVERY)
    folder = tmp_path / "out"
    content = content_of(folder, WRONG)
    assert content["complete"]
    assert content["machine"][0]["versions"]["numpy"] == np.__version__
    assert {"cpu", "gpu", "threads", "git_commit"} <= content["machine"][0].keys()
    assert content["ceilings"]["copy_bytes_per_s"] > 0
    assert content["ceilings"]["matmul_flop_per_s"]["fp32"] > 0
    network = content["networks"][str(checkpoint)]
    assert network["trained"]
    assert network["flops_per_row"] > 0
    assert network["conditions"] == "uniform in [-1, 1]"
    forms = {(curve["engine"], curve["precision"]) for curve in content["costs"]}
    chosen = "openvino" if ("openvino", "fp32") in forms else "eager"  # where it is installed
    assert forms == {("eager-loop", "-"), (chosen, "fp32")}
    assert all(len(curve["rows"]) == len(curve["ms"]) for curve in content["costs"])
    pngs = {path.name for path in folder.glob("*.png")}
    assert pngs == {"latency.png", "acceptance.png", "time_split.png"}
    assert {path.stem for path in folder.glob("*.svg")} == {Path(name).stem for name in pngs}
    check_cells(by_sampler(content["cells"]), chosen)


def check_cells(cells, engine):
    """Latency, counts, split and use of the hardware of EVERY cell."""
    assert set(cells) == set(EVERY)
    for cell in cells.values():
        assert cell["chunks"] == len(cell["latencies_ms"]) >= 5
        assert set(cell["latency_ms"]) == {"mean", "p50", "p95", "p99", "p99_over_p50"}
        assert set(cell["split_ms"]) == {"draft", "network", "verify", "noise", "other"}
        assert sum(cell["split_share"].values()) == pytest.approx(1)
        assert cell["warm_up"]["total_s"] >= cell["warm_up"]["first_chunk_s"] > 0
        assert cell["flop_per_s"] > 0
        assert cell["weight_bytes_per_s"] > 0
        assert cell["speedup"]["over_eager_loop"] > 0
        assert cell["rows_per_call"] == pytest.approx(cell["evaluations"] / cell["calls"])
    for name in ("eager-loop", "ddpm"):
        assert (cells[name]["calls"], cells[name]["algorithmic_speedup"]) == (10, 1)
    assert cells["ddim-4"]["calls"] == 4
    assert cells["asd"]["calls"] <= 10
    assert cells["ddpm"]["speedup"]["over_ddpm"] == 1
    assert cells["eager-loop"]["engine_used"] == "eager-loop"
    assert cells["asd"]["engine_used"] == engine
    assert cells["asd"]["kernels_used"] in ("native", "torch")
    assert len(cells["asd"]["decided"]) == 10


def test_lists_are_combined(run, words, tmp_path):
    options = ["--batches", 1, 2, "--windows", "auto", 3, "--steps", 5, 10, 15]
    status, output, _ = run(*words, *options, "--samplers", "asd", "ddpm", "ddim-8", "eager-loop")
    assert status == 0
    cells = content_of(tmp_path / "out")["cells"]
    keys = [cell["key"] for cell in cells]
    # asd twice for its windows; ddim-8 has no eight steps of five.
    assert len(keys) == len(set(keys)) == 2 * (2 * 5 + 4)
    assert {c["window_used"] for c in cells if c["window"] == "3"} == {3}
    assert all(c["calls"] == c["steps"] for c in cells if c["sampler"] == "ddpm")
    assert "2 chains" in output
    assert (tmp_path / "out" / "calls_against_steps.png").stat().st_size > 5000


@pytest.mark.usefixtures("no_figures")
def test_demonstrations_condition_the_chunks_where_they_fit(run, words, tmp_path, checkpoint):
    save_npz(tiny_replay(), tmp_path / "demos.npz")
    status, *_ = run(*words, "--samplers", "ddpm", "--data", tmp_path / "demos.npz")
    assert status == 0
    network = content_of(tmp_path / "out")["networks"][str(checkpoint)]
    assert network["conditions"] == "the demonstrations given"


def test_calls_against_steps(run, tmp_path):
    words = ["--calls-against-steps", "--quick", "--device", "cpu", "--out", tmp_path / "out"]
    status, output, _ = run("bench", *words)
    assert status == 0
    content = content_of(tmp_path / "out", [("calls_against_steps/0/calls", [3.0, "4"])])
    results = {r["form"]: r for r in content["calls_against_steps"]}
    assert set(results) == {"asd-paper", "asd-memory", "asd"}
    assert all(0 < r["exponent"] < 1 for r in results.values())
    assert "exponent" in output
    assert (tmp_path / "out" / "calls_against_steps.png").exists()


def test_figures_of_a_run_made_elsewhere(run, words, tmp_path):
    run(*words, "--samplers", "asd", "ddpm", "--batches", 1, 2)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "bench.json").write_bytes((tmp_path / "out" / "bench.json").read_bytes())
    status, output, _ = run("bench", "--figures", elsewhere)
    assert status == 0
    assert str(elsewhere / "latency.png") in output
    assert (elsewhere / "latency.png").read_bytes()[:4] == b"\x89PNG"


# --- going on after a kill ----------------------------------------------------------------------


@pytest.mark.usefixtures("no_figures")
def test_a_killed_run_goes_on_without_losing_or_repeating_cells(words, tmp_path, run):
    more = ["--samplers", "ddpm", "asd", "--batches", 1, 2, 4, 8]
    command = [sys.executable, "-m", "asd_policy", *words, *more]
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
    file, deadline = tmp_path / "out" / "bench.json", time.monotonic() + 500
    while time.monotonic() < deadline and process.poll() is None:
        if file.exists() and len(json.loads(file.read_text())["cells"]) >= 2:
            break
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = {c["key"]: c for c in content_of(tmp_path / "out")["cells"]}
    assert len(before) >= 2
    status, *_ = run(*words, *more, "--resume")
    assert status == 0
    content = content_of(tmp_path / "out")
    keys = [cell["key"] for cell in content["cells"]]
    assert len(keys) == len(set(keys)) == 8
    assert content["complete"]
    for cell in content["cells"]:
        if cell["key"] in before:
            assert cell["latencies_ms"] == before[cell["key"]]["latencies_ms"]


@pytest.mark.usefixtures("no_figures")
def test_a_finished_run_may_grow(run, words, tmp_path):
    run(*words, "--samplers", "ddpm")
    first = content_of(tmp_path / "out")["cells"][0]
    assert run(*words, "--samplers", "ddpm", "asd", "--resume")[0] == 0
    cells = by_sampler(content_of(tmp_path / "out")["cells"])
    assert cells["ddpm"]["latencies_ms"] == first["latencies_ms"]
    assert cells["asd"]["speedup"]["over_ddpm"] > 0


@pytest.mark.usefixtures("no_figures")
def test_a_folder_in_use_is_refused(run, refused, words, tmp_path):
    run(*words, "--samplers", "ddpm")
    refused(r"error: .* already holds a benchmark.*add --resume", *words, "--samplers", "ddpm")
    refused(r"with other settings \(--seed: 0 there, 3 now\)", *words, "--resume", "--seed", 3)
    trained = tiny_checkpoint()
    trained.network.final_conv[1].bias.data += 1
    save_checkpoint(tmp_path / "tiny", trained)
    refused(r"measurements of another network .*tiny, with weights", *words, "--resume")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    refused("other holds other files", *words[:-1], tmp_path / "other", "--samplers", "ddpm")


@pytest.mark.usefixtures("no_figures")
def test_a_cell_that_fails_is_kept_as_such_and_tried_again(run, words, tmp_path, monkeypatch):
    whole = contestants.Sampler

    def breaks(*arguments, **options):
        raise EngineError("capturing a round of 1 chains failed")

    monkeypatch.setattr(contestants, "Sampler", breaks)
    status, output, _ = run(*words, "--samplers", "asd", "eager-loop")
    assert status == 1
    assert "asd on auto failed: EngineError: capturing a round" in output
    content = content_of(tmp_path / "out", [("cells/0/traceback", KeyError), ("cells/0/error", 1)])
    assert "error" in content["cells"][0], "the failed one, which is changed above"
    cells = by_sampler(content["cells"])
    assert "capturing a round" in cells["asd"]["error"]
    assert cells["eager-loop"]["latency_ms"]["p50"] > 0
    monkeypatch.setattr(contestants, "Sampler", whole)
    assert run(*words, "--samplers", "asd", "eager-loop", "--resume")[0] == 0
    assert "error" not in by_sampler(content_of(tmp_path / "out")["cells"])["asd"]


# --- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engines", "warp"], r"^error: --engines takes some of auto, eager, .*; got 'warp'$"),
        (["--samplers", "euler"], r"^error: --samplers takes some of eager-loop, .*; got 'euler'$"),
        (["--samplers", "ddim-0"], r"got 'ddim-0'$"),
        (["--samplers", "asd", "asd"], r"--samplers takes one or more values, each once"),
        (["--precisions", "fp8"], r"^error: --precisions takes some of fp32, .*; got 'fp8'$"),
        (["--kernels", "magic"], r"^error: --kernels takes some of auto, .*; got 'magic'$"),
        (["--windows", "0"], r"^error: --windows takes auto and whole numbers .*; got '0'$"),
        (["--batches", "0"], r"^error: --batches must be 1 or more; got 0$"),
        (["--steps", "0"], r"^error: --steps must be 1 or more; got 0$"),
        (["--chunks", "0"], r"^error: --chunks must be 1 or more; got 0$"),
        (["--device", "tpu"], r"^error: --device must be auto or one .*; got 'tpu'$"),
        (["--device", "cuda:77"], r"^error: --device must be auto or one .*; got 'cuda:77'$"),
        (["--device", "cpu", "--engines", "cuda_graph"], r"cuda_graph needs a CUDA device"),
        (["--device", "cpu", "--precisions", "tf32"], r"tf32 needs a CUDA device"),
        (["--networks", "nowhere"], r"no checkpoint at nowhere"),
        (["--data", "nowhere.npz"], r"nowhere.npz holds no demonstrations"),
        (["--samplers", "ddim-200"], r"error: nothing to measure: ddim-200 takes more steps than"),
        (["--resume"], r"^error: --resume needs --out"),
        (["--figures", "nowhere"], r"^error: no benchmark at nowhere"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    refused, tmp_path, monkeypatch, words, message
):
    monkeypatch.chdir(tmp_path)
    refused(message.replace("^", r"(^|\.\.\. )"), "bench", *words)
    assert not list(tmp_path.iterdir())


def test_the_options_are_explained(run):
    status, output, _ = run("bench", "--help")
    assert status == 0
    assert {"--samplers", "--calls-against-steps", "--resume"} <= set(
        re.findall(r"--[\w-]+", output)
    )
    assert "bench" in cli.COMMANDS


# --- the whole benchmark on a bare machine ------------------------------------------------------


@pytest.fixture
def demonstrations(tmp_path):
    save_npz(tiny_replay((20, 30, 24)), tmp_path / "demos.npz")
    return tmp_path / "demos.npz"


def test_demonstrations_as_one_file(demonstrations, tmp_path):
    there, here = load_npz(demonstrations), tiny_replay((20, 30, 24))
    assert list(there.observations) == list(here.observations)
    assert all(np.array_equal(there.observations[k], v) for k, v in here.observations.items())
    assert np.array_equal(there.actions, here.actions)
    assert np.array_equal(there.episode_ends, here.episode_ends)
    assert there.attributes == here.attributes
    (tmp_path / "torn.npz").write_bytes(demonstrations.read_bytes()[:200])
    with pytest.raises(DatasetError, match="holds no demonstrations"):
        load_npz(tmp_path / "torn.npz")


@pytest.mark.usefixtures("no_figures")
def test_one_command_trains_and_measures_and_goes_on(demonstrations, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "TINY", (8, 16))
    monkeypatch.setattr(training, "DIFFUSION_STEPS", 12)
    monkeypatch.setattr(training, "PROBE_STEPS", 3)
    monkeypatch.setattr(training, "SHARE", 0.0)  # the fewest steps
    out = tmp_path / "out"
    words = ["--data", str(demonstrations), "--out", str(out), "--device", "cpu", "--quick"]
    words += ["--train-minutes", "0.002", "--commit", "abc"]
    for _ in range(50):  # training may need several calls, and has no time for anything else
        assert gpu.main([*words, "--minutes", "0"]) == 1
        if (out / "training" / "checkpoint").exists():
            break
    assert not content_of(out)["cells"]
    assert not content_of(out)["complete"]
    assert "run the same command to go on" in capsys.readouterr().out
    plan = json.loads((out / "training" / "plan.json").read_text())
    check("plan", plan, [("steps", 0.5), ("learning_rate", "3e-4"), ("batch_size", KeyError)])
    trained = (out / "training" / "checkpoint" / "model.safetensors").read_bytes()
    assert gpu.main([*words, "--minutes", "60"]) == 0
    content = content_of(out)
    assert content["complete"]
    assert content["machine"][0]["commit_given"] == "abc"
    assert {c["sampler"] for c in content["cells"]} == {*gpu.HEADLINE, "eager-loop"}
    assert content["calls_against_steps"]
    assert (out / "training" / "checkpoint" / "model.safetensors").read_bytes() == trained
    before = content["cells"]
    assert gpu.main([*words, "--minutes", "60"]) == 0
    assert content_of(out)["cells"] == before


def test_a_plan_of_another_version_is_refused(demonstrations, tmp_path, capsys):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "plan.json").write_text('{"schema_version": 0, "steps": 5}')
    words = ["--data", str(demonstrations), "--out", str(tmp_path), "--device", "cpu", "--quick"]
    assert gpu.main(words) == 2
    assert "plan.json: expected schema_version 1, got 0" in capsys.readouterr().err


def test_a_mistake_on_the_bare_machine(tmp_path, capsys, monkeypatch):
    words = ["--out", str(tmp_path), "--device", "cpu"]
    assert gpu.main(words) == 2
    assert "error: --data is needed" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "zarr", None)
    assert gpu.main([*words, "--data", str(tmp_path)]) == 2
    assert "error: eval/gpu.py needs zarr, which is not installed" in capsys.readouterr().err


@pytest.mark.skipif(not (ROOT / "eval" / "gpu.py").is_file(), reason="needs the checkout")
def test_the_script_runs_from_a_checkout_with_the_core_alone(tmp_path):
    """As on a machine where nothing can be installed: other packages are hidden from it."""
    hide = "\n".join(
        f"sys.modules[{name!r}] = None"
        for name in ("tyro", "rich", "zarr", "matplotlib", "gymnasium", "scipy", "robosuite")
    )
    script = tmp_path / "hidden.py"
    script.write_text(
        f"import sys, runpy\nsys.meta_path[:] = [f for f in sys.meta_path if 'Editable' not in "
        f"repr(f)]\n{hide}\nsys.path.insert(0, {str(ROOT / 'eval')!r})\n"
        f"sys.argv = ['gpu.py', '--help']\nrunpy.run_path({str(ROOT / 'eval' / 'gpu.py')!r}, "
        "run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert "--train-minutes" in done.stdout


@pytest.mark.skipif(not (ROOT / "eval" / "gpu.py").is_file(), reason="needs the checkout")
def test_no_module_beside_the_script_has_a_name_of_the_standard_library():
    """Python searches the script's folder first."""
    assert {path.stem for path in (ROOT / "eval").iterdir()}.isdisjoint(sys.stdlib_module_names)


def test_the_headline_comes_first_on_a_gpu():
    torch = pytest.importorskip("torch")
    groups = gpu.stages("net", 100, torch.device("cuda"), "auto", quick=False)
    first = {(c.sampler, c.engine, c.batch, c.steps) for c in groups[0]}
    assert ("asd", "cuda_graph", 1, 100) in first
    assert ("eager-loop", "-", 1, 100) in first
    cells = [cell for group in groups for cell in group]
    assert len(cells) == len(set(cells))
    assert {c.batch for c in cells} == {1, 8, 32, 128}
    assert {c.precision for c in cells} == {"tf32", "bf16", "fp32", "-"}
    assert {c.steps for c in cells} == {25, 50, 100, 200, 400, 800}
