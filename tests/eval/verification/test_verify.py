"""`asd-policy verify` as a user types it: the oracle, and small untrained policies."""

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from eval_schemas import check

from asd_policy.data.replay import save_npz
from asd_policy.errors import DatasetError
from asd_policy.eval.studies.verify.options import VerifyOptions
from asd_policy.eval.studies.verify.oracle import Oracle
from asd_policy.files import LOCK_FILE, claimed
from asd_policy.policy import save_checkpoint
from asd_policy.schedule import Schedule
from reference.tiny import tiny_checkpoint, tiny_replay

DATA = Path(__file__).parents[2] / "data"
COMMAND = [sys.executable, "-m", "asd_policy"]
# What verify.json may not hold.
WRONG = [
    ("settings/alpha", 0.7),
    ("settings/window", "auto"),
    ("settings/more", 1),
    ("subject/kind", "guess"),
    ("subject/sha256", "abc"),
    ("resolved/precision", "fp8"),
    ("machine/threads", KeyError),
    ("machine/more", 1),
    ("samplers/sample/calls_per_chunk", 0),
    ("samplers/reference", KeyError),
    ("tests", []),
    ("tests/0/p_holm", 1.5),
    ("tests/0/differs", 0),
    ("power/hardest/shift", "large"),
    ("power/by_action/0/action", 0.5),
    ("controls/0/found", "perhaps"),
    ("controls/0/tests", KeyError),
    ("verdict/status", 3),
]
# Few steps and few chunks: a run takes seconds, and still tells what it must.
ORACLE = ("verify", "--oracle", "--observations", 2, "--batch", 200, "--steps", 40, "--threads", 1)


def result(folder, wrong=()):
    content = json.loads((folder / "verify.json").read_text())
    check("verify", content, wrong)
    asked = json.loads((folder / "config.json").read_text())
    check("verify_config", asked, [("settings/seed", -1), ("settings/code", ["0.1.0"])])
    return content


def test_asd_on_the_oracle_is_equal_to_ddpm_and_to_the_exact_law(run, tmp_path):
    out = tmp_path / "out"
    status, output, errors = run(*ORACLE, "--chunks", 800, "--controls", "--out", out)
    assert status == 0, output + errors
    assert "EQUAL AS FAR AS COULD BE TOLD (exit status 0): none of" in output
    content = result(out, WRONG)
    families = {test["family"] for test in content["tests"]}
    assert {"exact law of asd", "exact law of sequential ddpm", "gripper modes"} <= families
    sample, reference = (content["samplers"][role] for role in ("sample", "reference"))
    assert reference["calls_per_chunk"] == 40
    assert sample["calls_per_chunk"] < 20
    assert (sample["chunks"], sample["chunks_per_observation"]) == (800, 400)
    controls = {control["name"].split()[0]: control for control in content["controls"]}
    assert controls["ddpm-again"]["found"] == "equal"
    wrong = {name for name, control in controls.items() if control["found"] == "differs"}
    assert wrong == {
        "ddpm-shifted", "ddim-10", "asd-always-accepting", "asd-peeking", "asd-next-memory"
    }  # fmt: skip
    for suffix in ("png", "svg"):
        assert (out / f"verify.{suffix}").stat().st_size > 10_000
    for number in (content["power"]["hardest"]["shift_deviations"], sample["calls_per_chunk"]):
        assert f"{number:.2g}" in output or f"{number:.1f}" in output


@pytest.mark.parametrize("subject", ["oracle", "checkpoint"])
def test_everything_in_float64_on_request(run, tmp_path, subject):
    words = [*ORACLE[:1], "--observations", 2, "--batch", 20, "--steps", 10, "--threads", 1]
    if subject == "checkpoint":
        words += ["--checkpoint", save_checkpoint(tmp_path / "tiny", tiny_checkpoint())]
    else:
        words += ["--oracle"]
    words += ["--chunks", 40, "--precision", "fp64", "--controls", "--out", tmp_path / "out"]
    status, output, errors = run(*words)
    assert status in (0, 2), output + errors
    assert "fp64" in output
    assert result(tmp_path / "out")["resolved"]["precision"] == "fp64"
    for role in ("sample", "reference", "asd-peeking"):
        draws = np.load(tmp_path / "out" / "draws" / role / "00000.npz")
        assert draws["chunks"].dtype == np.float64
        assert (draws["chunks"] != draws["chunks"].astype(np.float32)).any(), "computed in it too"


def test_ddim_in_ten_steps_differs(run, tmp_path):
    words = ("--sampler", "ddim", "--chunks", 400, "--out", tmp_path / "out")
    status, output, _ = run(*ORACLE, *words)
    assert status == 1, output
    assert "DIFFERS (exit status 1): ddim does not have ddpm's distribution" in output
    assert result(tmp_path / "out")["verdict"]["status"] == 1


def test_asd_of_ddim_with_noise_is_held_to_that_chain(run, tmp_path):
    words = ("--sampler", "asd-ddim", "--eta", 0.8, "--ddim-steps", 12, "--chunks", 400)
    status, output, _ = run(*ORACLE, *words, "--out", tmp_path / "out")
    assert status == 0, output
    content = result(tmp_path / "out")
    assert content["samplers"]["reference"]["name"] == "ddim-clipped"
    assert content["samplers"]["reference"]["calls_per_chunk"] == 12


def test_too_few_chunks_are_exit_status_2_and_more_can_be_drawn(run, tmp_path):
    out = tmp_path / "out"
    words = (*ORACLE[:4], "--batch", 20, "--steps", 10, "--threads", 1, "--out", out)
    status, output, errors = run(*words, "--chunks", 20, "--detect", 0.15)
    assert status == 2, output
    assert "COULD NOT TELL, TOO FEW CHUNKS (exit status 2)" in output
    assert "error:" not in output + errors
    needed = result(out)["power"]["chunks_needed"]
    assert f"about {needed} chunks would do" in output
    before = (out / "draws" / "sample" / "00000.npz").read_bytes()
    assert needed > 200
    status, output, errors = run(*words, "--chunks", 400, "--detect", 0.3, "--resume")
    assert status == 0, output + errors
    assert (out / "draws" / "sample" / "00000.npz").read_bytes() == before


def test_the_same_seed_draws_the_same_chunks(run, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        words = ("--chunks", 20, "--batch", 20, "--steps", 5, "--seed", seed)
        run(*ORACLE, *words, "--out", tmp_path / name)
    draws = [
        {
            role: np.load(tmp_path / name / "draws" / role / "00000.npz")["chunks"]
            for role in ("sample", "reference")
        }
        for name in "abc"
    ]
    for role in ("sample", "reference"):
        assert np.array_equal(draws[0][role], draws[1][role])
        assert not np.array_equal(draws[0][role], draws[2][role])
    assert abs(np.corrcoef(draws[0]["sample"].ravel(), draws[0]["reference"].ravel())[0, 1]) < 0.95


def test_the_exact_law_is_that_of_a_simulated_chain():
    """The recursion against 20,000 sequential chains: means and deviations within 5 standard
    errors, number by number (24 of each; a false alarm has probability 3e-5)."""
    oracle, schedule = Oracle(), Schedule.ddpm(20, clip_sample=False)
    exact = oracle.exact(schedule)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, exact.mean.size))
    variances = oracle.deviations.numpy() ** 2
    for n, t in enumerate(schedule.timesteps.tolist()):
        bar = float(schedule.alphas_cumprod[t])
        gain = np.sqrt(bar) * variances / (bar * variances + 1 - bar)
        guess = oracle.centre.numpy() + gain * (x - np.sqrt(bar) * oracle.centre.numpy())
        a, b, sigma = (float(table[n]) for table in (schedule.a, schedule.b, schedule.sigma))
        x = a * guess + b * x + sigma * rng.normal(size=x.shape)
    deviation = exact.deviation.ravel()
    assert np.abs((x.mean(0) - exact.mean.ravel()) / deviation).max() < 5 / np.sqrt(20_000)
    assert np.abs(x.std(0) / deviation - 1).max() < 5 / np.sqrt(2 * 20_000)


# ---- checkpoints --------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    return save_checkpoint(tmp_path / "policy", tiny_checkpoint())


def words_for(checkpoint, out):
    """These tests are of what surrounds the verdict: an alpha so small that it does not vary."""
    return ("verify", "--checkpoint", checkpoint, "--out", out, "--observations", 2, "--batch", 100,
            "--chunks", 100, "--window", 4, "--threads", 1, "--detect", 8,
            "--alpha", 1e-4)  # fmt: skip


def test_a_checkpoint_of_no_known_task_gets_synthetic_observations(run, checkpoint, tmp_path):
    status, output, errors = run(*words_for(checkpoint, tmp_path / "out"))
    assert status == 0, output + errors
    content = result(tmp_path / "out")
    assert content["subject"]["observations_from"].startswith("synthetic, uniform within 80%")
    assert "Observations: 2, synthetic" in output
    windows = np.load(tmp_path / "out" / "moments.npz")["windows"]
    assert windows.shape == (2, 2, 5)
    assert np.abs(windows).max() <= 0.8 * 2.0
    low, high = content["power"]["by_action"][0], content["power"]["hardest"]
    assert low["deviation"] > 0
    assert high["shift_deviations"] >= low["shift_deviations"]


def test_a_file_of_diffusion_policy_is_verified(run, tmp_path):
    path = tmp_path / "latest.ckpt"
    path.write_bytes(gzip.decompress((DATA / "diffusion_policy.ckpt.gz").read_bytes()))
    status, output, errors = run(*words_for(path, tmp_path / "out"))
    assert status == 0, output + errors
    content = result(tmp_path / "out")
    assert content["subject"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert content["subject"]["name"] == "latest.ckpt"


def test_observations_from_demonstrations(run, checkpoint, tmp_path):
    save_npz(tiny_replay(), tmp_path / "demos.npz")
    words = words_for(checkpoint, tmp_path / "out")
    status, output, errors = run(*words, "--source", tmp_path / "demos.npz")
    assert status == 0, output + errors
    assert "demonstrations in demos.npz" in output
    windows = np.load(tmp_path / "out" / "moments.npz")["windows"]
    rows = np.concatenate(list(tiny_replay().observations.values()), axis=1)
    for before, now in windows:
        at = int(np.flatnonzero((rows == now).all(1))[0])
        first = at in (0, 12, 17)  # of an episode: there is nothing before it
        assert np.array_equal(before, rows[at if first else at - 1])


def test_demonstrations_of_something_else_are_refused(refused, checkpoint, tmp_path):
    replay = tiny_replay()
    del replay.observations["arm"]
    save_npz(replay, tmp_path / "demos.npz")
    words = words_for(checkpoint, tmp_path / "out")
    message = r"error: .*demos.npz: expected observations \{'object': 3, 'arm': 2\}"
    refused(message, *words, "--source", tmp_path / "demos.npz")
    save_npz(tiny_replay((1,)), tmp_path / "one.npz")
    one = r"error: .*one.npz holds 1 observation, and --observations asks for 2"
    refused(one, *words, "--source", tmp_path / "one.npz")  # the folder is still free
    assert issubclass(DatasetError, ValueError)


def test_two_at_once_in_one_folder_are_told_apart(run, refused, checkpoint, tmp_path):
    words, out = words_for(checkpoint, tmp_path / "out"), tmp_path / "out"
    with claimed(out):
        refused(r"error: another process is at work in .*out; wait for it", *words)
        refused(r"error: another process is at work in", "bench", "--quick", "--out", out)
    (out / LOCK_FILE).touch()  # as a kill leaves it
    assert run(*words)[0] == 0
    assert not (out / LOCK_FILE).exists()


def test_a_finished_run_is_not_overwritten(run, refused, checkpoint, tmp_path):
    words = words_for(checkpoint, tmp_path / "out")
    assert run(*words)[0] == 0
    refused(r"error: .*out already holds a verification with .*; add --resume", *words)
    refused(r"error: .*with other settings \(--seed: 0 there, 5 now\)", *words, "--seed", 5)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    words = words_for(checkpoint, tmp_path / "other")
    refused(r"error: the output folder must be new, empty, or hold a verification", *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--chunks", 3), r"--chunks must be a whole number, 40 or more; got 3"),
        (("--alpha", 0), r"--alpha must be above 0 and below 0.5, got 0.0"),
        (("--detect", 0), r"--detect must be above 0 and at most 8, got 0.0"),
        (("--window", 0), r"--window must be .*a whole number, 1 or more; got 0"),
        (("--sampler", "euler"), r"--sampler takes one or more of asd, .*; got euler"),
        (("--oracle", "--source", "synthetic"), r"--oracle needs no --source; leave it out"),
        (("--oracle", "--task", "can"), r"--oracle needs no --task; leave it out"),
        (("--resume",), r"--resume needs --out"),
        (("--resume", "--out", "none"), r"--resume: expected .* in none; found none"),
        (("--task", "juggle"), r"unknown task 'juggle'"),
        (("--device", "tpu"), r"--device must be auto or one .*got 'tpu'"),
        (("--workers", 0), r"--workers must be a whole number, 1 or more; got 0"),
        (("--workers", 2, "--engine", "distributed"), r"--workers is not for --engine distributed"),
        (("--gripper", 9), r"--gripper must be a column of the action, -7 to 6, or None; got 9"),
    ],
)
def test_mistakes_are_one_sentence(refused, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(message, "verify", *words)
    assert not (tmp_path / "outputs").exists(), "refused before anything was written"


def test_asd_without_noise_is_refused_at_once(refused, tmp_path):
    refused(r"error: asd-ddim needs noise in every step", *ORACLE, "--sampler", "asd-ddim", "--out",
            tmp_path / "out")  # fmt: skip


def test_options_round_batches_up():
    options = VerifyOptions(chunks=2000, observations=8, batch=64)
    assert (options.each, options.batches) == (8, 32)
    assert VerifyOptions(observations=100, batch=64).each == 1


# ---- a kill -------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_to_the_same_figures(run, tmp_path):
    words = [*map(str, ORACLE), "--batch", "40", "--chunks", "400"]
    assert run(*words, "--out", tmp_path / "whole")[0] == 0
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [*COMMAND, *words, "--out", str(out)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"NO_COLOR": "1"},
    )  # fmt: skip
    drawn = out / "draws" / "sample"
    while process.poll() is None and len(list(drawn.glob("*.npz"))) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert not (out / "verify.json").exists(), "killed on the way"
    (drawn / "00001.npz").write_bytes(b"torn")  # as a full disk may leave it
    assert run(*words, "--out", out, "--resume")[0] == 0
    whole, resumed = result(tmp_path / "whole"), result(out)
    for key in ("tests", "power", "verdict"):
        assert whole[key] == resumed[key]


def test_another_engine_is_not_said_to_have_drawn_what_is_there(run, tmp_path):
    words = [*ORACLE, "--batch", "40", "--chunks", "40", "--out", tmp_path / "out"]
    assert run(*words, "--engine", "eager")[0] in (0, 2)
    status, _, errors = run(*words, "--resume", "--engine", "auto")
    assert status == 2
    assert "--engine: eager there, auto now" in errors
    assert "continue with" not in errors


# ---- several processes ---------------------------------------------------------------------------


def test_workers_draw_what_one_process_draws(run, tmp_path):
    words = (*ORACLE, "--batch", 40, "--chunks", 400)
    status, _, errors = run(*words, "--chunks", 100, "--out", tmp_path / "two", "--workers", 2)
    assert status in (0, 2)
    assert "chunks of all samplers, by 2 workers 0/240" in errors
    status, _, errors = run(*words, "--out", tmp_path / "two", "--workers", 2, "--resume")
    assert status == 0
    assert "chunks of all samplers, by 2 workers 240/800" in errors, "what was there is kept"
    assert run(*words, "--out", tmp_path / "one")[0] == 0
    one, two = (sorted((tmp_path / name / "draws").rglob("*.npz")) for name in ("one", "two"))
    assert len(one) == len(two) == 20
    for left, right in zip(one, two, strict=True):
        with np.load(left) as single, np.load(right) as double:
            for key in ("chunks", "calls", "evaluations"):
                assert np.array_equal(single[key], double[key]), left
    whole, parts = result(tmp_path / "one"), result(tmp_path / "two")
    assert whole["tests"] == parts["tests"]
    assert whole["settings"] == parts["settings"], "how many processes is no setting"


@pytest.mark.parametrize("where", ["compare", "save_figure"])
def test_ctrl_c_while_comparing_leaves_what_was_drawn(where, run, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    words = (*ORACLE[:4], "--batch", 20, "--steps", 5, "--chunks", 20, "--out", tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(f"asd_policy.eval.studies.verify.run.{where}", interrupted)
        status, output, errors = run(*words)
    assert (status, "Kept" in output) == (130, False)
    assert "comparing the chunks" in errors
    assert "continue with\n  asd-policy verify --oracle" in errors
    status, output, _ = run(*words, "--resume")
    assert (status, "Kept: " in output) == (2, True), "too few to tell"


@pytest.mark.skipif(not os.path.exists("/proc/self/cmdline"), reason="finds processes by /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_worker_that_dies_and_ctrl_c_leave_what_was_drawn(how, run, checkpoint, tmp_path):
    out = tmp_path / "out"
    words = [*map(str, words_for(checkpoint, out)), "--workers", "2", "--chunks", "20000"]
    process = subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not list(out.rglob("draws/*/*.npz")):
        time.sleep(0.02)
    workers = [pid for pid in children(process.pid) if "spawn_main" in command_of(pid)]
    assert len(workers) == 2
    os.kill(workers[0] if how == signal.SIGKILL else process.pid, how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if how == signal.SIGINT else 2), errors
    assert "continue with\n  asd-policy verify" in errors
    assert ("error: a worker process died" in errors) == (how == signal.SIGKILL)
    assert "Traceback" not in errors
    assert not any("spawn_main" in command_of(pid) for pid in workers), "none goes on alone"
    assert run(*words[:-1], 100, "--resume")[0] == 0


def children(parent):
    table = subprocess.check_output(["ps", "-A", "-o", "pid=", "-o", "ppid="], text=True)
    pairs = [line.split() for line in table.splitlines()]
    return [int(pid) for pid, above in pairs if int(above) == parent]


def command_of(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read()
    except OSError:
        return ""
