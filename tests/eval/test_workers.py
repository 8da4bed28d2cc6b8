"""Several environments in worker processes: the same episodes, deaths, failures, nothing left."""

import dataclasses
import functools
import multiprocessing
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from eval_standin import LineEnv, prepare, timeless
from eval_workers import Dies, Fails, NotMade, Traced

from asd_policy.errors import AsdPolicyError, NonFiniteError
from asd_policy.eval.options import EvalOptions
from asd_policy.eval.rollout.loop import MAX_RESTARTS
from asd_policy.eval.slots import WorkerDied, WorkerSlot
from asd_policy.eval.stats.basics import paired_success
from asd_policy.eval.studies.evaluate import evaluate


@pytest.fixture
def options(tmp_path):
    return EvalOptions(episodes=5, num_envs=2, samplers=("asd",), out=tmp_path / "run")


@pytest.fixture(autouse=True)
def _no_process_is_left():
    yield
    assert multiprocessing.active_children() == []


def run(options, quiet, env_class=LineEnv):
    make = functools.partial(prepare, env_class=env_class, workers=True)
    return evaluate(options, prepare=make, console=quiet)


def outcomes(folder: Path) -> dict[tuple[str, int], tuple]:
    return {k: (e["success"], e["steps"], e["return"]) for k, e in timeless(folder).items()}


def test_workers_and_this_process_give_the_same_episodes(options, quiet, tmp_path):
    both = dataclasses.replace(options, samplers=("asd", "ddpm"), num_envs=3)
    run(both, quiet)
    here = dataclasses.replace(both, num_envs=1, out=tmp_path / "here")
    evaluate(here, prepare=prepare, console=quiet)
    assert outcomes(both.out) == outcomes(here.out)
    assert len(outcomes(here.out)) == 10
    assert {e["num_envs"] for e in timeless(both.out).values()} == {3}


@pytest.mark.parametrize("at", [0, 3])
def test_a_dead_worker_is_replaced_and_its_episode_run_again(options, quiet, tmp_path, at):
    world = functools.partial(Dies, folder=tmp_path, seed=100_001, at=at, times=2)
    results = run(options, quiet, world)
    evaluate(
        dataclasses.replace(options, num_envs=1, out=tmp_path / "here"),
        prepare=prepare,
        console=quiet,
    )
    assert outcomes(options.out) == outcomes(tmp_path / "here")
    restarts = {seed: e["restarts"] for (_, seed), e in timeless(options.out).items()}
    assert restarts == {100_000: 0, 100_001: 2, 100_002: 0, 100_003: 0, 100_004: 0}
    assert results["restarts"] == 2
    assert "Worker processes died 2 times" in quiet.file.getvalue()
    assert len(list(tmp_path.glob("pid-*"))) == 2 + 2


def test_an_episode_that_kills_every_worker_is_given_up(options, quiet, tmp_path):
    world = functools.partial(Dies, folder=tmp_path, seed=100_001, at=3, times=100)
    with pytest.raises(AsdPolicyError, match=r"seed 100001 of asd was given up: .*exit code -9"):
        run(options, quiet, world)
    assert len(list(tmp_path.glob("death-*"))) == 1 + MAX_RESTARTS


def test_a_film_of_an_episode_that_was_run_again_is_whole(options, quiet, tmp_path):
    import imageio.v2 as imageio

    world = functools.partial(Dies, folder=tmp_path, seed=100_000, at=4, times=1)
    run(dataclasses.replace(options, video=1), quiet, world)
    films = list((options.out / "videos").iterdir())
    assert [film.name for film in films] == ["lift_seed100000_asd_success.mp4"]
    with imageio.get_reader(films[0]) as film:
        assert sum(1 for _ in film) == timeless(options.out)["asd", 100_000]["steps"] + 1


@pytest.mark.parametrize(
    ("kind", "expected", "message"),
    [
        ("non-finite", NonFiniteError, r"^expected finite observations, got nan$"),
        ("key", RuntimeError, r"failed in its process: KeyError\('no such key'\)"),
        ("unpicklable", RuntimeError, r"RuntimeError\('Unpicklable: 1 and 2: 100%d'\)"),
    ],
)
def test_an_exception_in_a_worker_is_raised_here(options, quiet, kind, expected, message):
    with pytest.raises(expected, match=message) as caught:
        run(options, quiet, functools.partial(Fails, kind=kind))
    assert "eval_workers.py" in str(caught.value.__cause__), "where it was raised, in the worker"
    assert (options.out / "results.json").exists()


def test_an_environment_that_cannot_be_made_is_an_error(options, quiet):
    with pytest.raises(RuntimeError, match=r"FileNotFoundError\('no such mesh'\)"):
        run(options, quiet, NotMade)


def test_a_worker_that_was_killed_between_two_questions():
    slot = WorkerSlot(functools.partial(LineEnv, 40, 0.0))
    try:
        slot.start(3, film=False)
        first = slot.receive()
        assert (first.success, first.over, first.frame) == (False, False, None)
        process = slot.process
        process.kill()
        process.join()
        slot.send(np.array([-0.5], np.float32))
        with pytest.raises(WorkerDied, match=r"ended by itself \(exit code -9\)"):
            slot.receive()
        slot.restart()
        slot.start(3, film=True)
        again = slot.receive()
        np.testing.assert_array_equal(again.observation["place"], first.observation["place"])
        assert again.frame.shape == (32, 32, 3)
    finally:
        slot.close()


def test_the_exit_code_is_known_when_the_pool_s_thread_is_told_it_first(monkeypatch):
    """Two threads wait for a process that died; the other one is told how, and is slow after it."""
    real, here = os.waitpid, threading.current_thread()

    def waitpid(pid: int, options: int) -> tuple[int, int]:
        if threading.current_thread() is here:
            time.sleep(0.3)
            return real(pid, options)
        told = real(pid, options)
        time.sleep(0.6)
        return told

    slot = WorkerSlot(functools.partial(LineEnv, 40, 0.0))
    try:
        slot.start(3, film=False)
        slot.receive()
        monkeypatch.setattr(os, "waitpid", waitpid)
        slot.process.kill()
        slot.send(np.array([-0.5], np.float32))
        with pytest.raises(WorkerDied, match=r"ended by itself \(exit code -9\)"):
            slot.receive()
    finally:
        slot.close()


def test_a_slot_runs_ahead_with_the_queue():
    queue = [np.array([push], np.float32) for push in (-1.0, -1.0, -1.0)]
    slot = WorkerSlot(functools.partial(LineEnv, 40, 0.0))
    try:
        slot.start(3, film=False)
        first = slot.receive().observation["place"]
        slot.send(queue[0], queue[1:])
        second = slot.receive().observation["place"]
        slot.send(queue[1], queue[2:])
        np.testing.assert_allclose(slot.receive().observation["place"], first - 2.0, atol=1e-6)
        np.testing.assert_allclose(second, first - 1.0, atol=1e-6)
        with pytest.raises(AssertionError, match="ran ahead with another action"):
            slot.send(np.array([0.5], np.float32))
    finally:
        slot.close()


def test_a_program_that_cannot_be_imported_is_told_so(tmp_path, script):
    program = PROGRAM.replace("if __name__", "if True or __name__")
    text = program.format(folder=str(tmp_path), out=str(tmp_path / "run"))
    done = subprocess.run(script(text), capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "must be importable, its own work under `if __name__ == '__main__':`" in last


# --- the process that evaluates is killed or interrupted ----------------------------------------

PROGRAM = """
import functools
from pathlib import Path
from eval_standin import prepare
from eval_workers import Traced
from asd_policy.eval.studies.evaluate import evaluate
from asd_policy.eval.options import EvalOptions
if __name__ == "__main__":
    world = functools.partial(Traced, folder=Path({folder!r}))
    options = EvalOptions(episodes=500, num_envs=3, out=Path({out!r}))
    evaluate(options, prepare=functools.partial(
        prepare, step_s=0.01, env_class=world, workers=True))
"""


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def start(script, folder: Path) -> tuple[subprocess.Popen, list[int]]:
    """A program with three workers, and their processes once episodes end."""
    process = subprocess.Popen(
        script(PROGRAM.format(folder=str(folder), out=str(folder / "run"))),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    lines = folder / "run" / "episodes.jsonl"
    while process.poll() is None and not (lines.exists() and lines.read_bytes().count(b"\n") > 3):
        time.sleep(0.05)
    workers = [int(path.name.split("-")[1]) for path in folder.glob("pid-*")]
    assert len(workers) == 3
    assert all(map(runs, workers))
    return process, workers


def wait_until_none_runs(pids: list[int]) -> None:
    deadline = time.monotonic() + 60
    while any(map(runs, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(runs, pids))


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


@needs_proc
def test_workers_end_when_the_evaluation_is_killed(tmp_path, script, quiet):
    process, workers = start(script, tmp_path)
    process.kill()
    process.communicate()
    wait_until_none_runs(workers)
    kept = len(outcomes(tmp_path / "run"))
    options = EvalOptions(episodes=500, num_envs=3, out=tmp_path / "run", resume=True)
    assert 3 < kept < 1000
    results = evaluate(options, prepare=prepare, console=quiet)
    assert results["complete"]
    assert len(outcomes(tmp_path / "run")) == 1000


@needs_proc
def test_ctrl_c_reaches_every_process_and_one_answers(tmp_path, script):
    process, workers = start(script, tmp_path)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
    _, errors = process.communicate(timeout=120)
    wait_until_none_runs(workers)
    assert process.returncode not in (0, None)
    assert errors.count("Traceback") == 1, errors  # this program's own: it has no command line
    assert re.search(r"\d+ of 1000 episodes were finished and are kept", errors)
    assert re.search(r"continue with\s+asd-policy eval --episodes 500 --num-envs 3", errors)
    assert not (set(map(int, re.findall(r"pid-(\d+)", errors))) & set(workers))


@needs_proc
def test_a_worker_that_is_killed_from_outside_is_replaced(tmp_path, script):
    process, workers = start(script, tmp_path)
    os.kill(workers[0], signal.SIGKILL)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if sum(e["restarts"] for e in timeless(tmp_path / "run").values()):
            break
        time.sleep(0.2)
    assert sum(e["restarts"] for e in timeless(tmp_path / "run").values()) == 1
    assert len(list(tmp_path.glob("pid-*"))) == 4
    process.kill()
    process.communicate()
    wait_until_none_runs([int(path.name.split("-")[1]) for path in tmp_path.glob("pid-*")])


def test_one_environment_starts_no_process(options, quiet, tmp_path):
    world = functools.partial(Traced, folder=tmp_path)
    run(dataclasses.replace(options, num_envs=1), quiet, world)
    assert [path.name for path in tmp_path.glob("pid-*")] == [f"pid-{os.getpid()}"]


# --- the real world and the shipped policy ------------------------------------------------------


@pytest.mark.slow
def test_success_of_the_shipped_policy_does_not_depend_on_the_number_of_environments(
    quiet, tmp_path
):
    """Equal in law, and but for rounding in every episode: the first chunk of a seed has the same
    scene and the same noise, and so the same cost, unless a proposal is accepted by a hair."""
    one = EvalOptions(
        samplers=("asd",), episodes=6, window=16, horizon=150, threads=1, out=tmp_path / "one"
    )
    many = dataclasses.replace(one, num_envs=3, out=tmp_path / "many")
    for options in (one, many):
        assert evaluate(options, console=quiet)["restarts"] == 0
    a, b = timeless(one.out), timeless(many.out)
    assert a.keys() == b.keys()
    assert {e["num_envs"] for e in b.values()} == {3}
    pair = paired_success(*({k[1]: e["success"] for k, e in run.items()} for run in (a, b)))
    assert pair["n"] == 6
    assert pair["p_value"] is None or pair["p_value"] > 0.01
    same = [a[key]["chunks"][0]["calls"] == b[key]["chunks"][0]["calls"] for key in a]
    assert sum(same) >= 5
