"""Collections: whole, in order, refused where they would do harm, and the same after a kill."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from asd_policy.checkpoints import shipped
from asd_policy.envs import demos
from asd_policy.envs.attempts import Recipe, attempt_path, open_folder, run_attempts
from asd_policy.errors import CheckpointError, DatasetError, OutputExistsError
from asd_policy.policy.checkpoint import read_card
from asd_policy.training.collect import CheckpointLearner, main_collect


def files_of(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


# --- the store ----------------------------------------------------------------------------------


def test_the_layout_of_the_store(store):
    root = zarr.open_group(str(store), mode="r")
    ends = root["meta/episode_ends"][:]
    assert ends.dtype == np.int64
    assert (np.diff([0, *ends]) > 20).all()
    shapes = {
        name: (root[f"data/{name}"].shape, root[f"data/{name}"].dtype) for name in root["data"]
    }
    rows = ends[-1]
    assert shapes == {
        "object": ((rows, 10), np.float32),
        "robot0_eef_pos": ((rows, 3), np.float32),
        "robot0_eef_quat": ((rows, 4), np.float32),
        "robot0_gripper_qpos": ((rows, 2), np.float32),
        "action": ((rows, 7), np.float32),
        "executed_action": ((rows, 7), np.float32),
        "interrupted": ((rows,), np.bool_),
        "reward": ((rows,), np.float32),
        "state": ((rows, 32), np.float64),
    }
    assert all(np.isfinite(root[f"data/{name}"][:]).all() for name in shapes)


def test_the_store_says_how_it_was_made(store):
    attributes = dict(zarr.open_group(str(store), mode="r").attrs)
    assert attributes["task"] == "lift"
    assert attributes["env_id"] == "asd_policy/Lift-v0"
    assert attributes["expert"] == "asd_policy.envs.experts.lift:LiftExpert"
    assert attributes["noise"]["std"] == 0.1
    assert attributes["seed"] == 5
    assert attributes["episodes"] == 3
    assert attributes["success_rate"] == 3 / attributes["attempts"]
    assert set(attributes["versions"]) >= {"asd-policy", "robosuite", "mujoco"}
    assert attributes["command"] == (
        "asd-policy demos --task lift --episodes 3 --noise 0.1 --seed 5"
    )
    assert str(Path.home()) not in json.dumps(attributes)


# --- interrupted collections --------------------------------------------------------------------

PROGRAM = """
import sys
from asd_policy.cli import main
if __name__ == "__main__":  # the workers import this file
    sys.exit(main(["demos", "--episodes", "3", "--noise", "0.1", "--seed", "5",
                   "--workers", "2", "--out", sys.argv[1]]))
"""


def saved(out: Path) -> list[str]:
    return sorted(path.name for path in Path(f"{out}.partial").glob("attempt-*.npz"))


def start_until(program: Path, out: Path, attempts: int) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, program, out],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while len(saved(out)) < attempts:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def group_is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs POSIX process groups")
def test_stopped_and_killed_collections_go_on_to_the_same_store(store, tmp_path):
    """Ctrl-C, then kill -9, then the rest; with two workers, where `store` was made by one."""
    out, program = tmp_path / "lift.zarr", tmp_path / "program.py"
    program.write_text(PROGRAM)

    process = start_until(program, out, attempts=1)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert re.search(r"What was finished is kept in .*lift\.zarr\.partial", said.replace("\n", ""))
    after_interrupt = {name: _bytes(out, name) for name in saved(out)}
    assert after_interrupt
    if len(after_interrupt) == 3:  # both workers had one more under way: take the last away
        attempt_path(Path(f"{out}.partial"), 2).unlink()
        del after_interrupt["attempt-000002.npz"]

    process = start_until(program, out, attempts=len(after_interrupt))
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while not group_is_gone(process.pid):  # the workers of a killed parent must not linger
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert {name: _bytes(out, name) for name in after_interrupt} == after_interrupt
    assert not out.exists()

    summary = demos.collect("lift", 3, 0.1, out, workers=2, seed=5, progress=False)
    assert summary.episodes == 3
    assert files_of(out) == files_of(store)
    assert not Path(f"{out}.partial").exists()


def _bytes(out: Path, name: str) -> bytes:
    return (Path(f"{out}.partial") / name).read_bytes()


def write_attempt(folder: Path, number: int, success: bool, length: int = 2) -> None:
    column = np.full((length, 1), number, np.float32)
    arrays = {"action": column, "object": column} if success else {}
    np.savez(attempt_path(folder, number), success=success, **arrays)


def test_saved_attempts_are_used_as_they_are_and_failures_are_dropped(tmp_path):
    out = tmp_path / "lift.zarr"
    folder = tmp_path / "lift.zarr.partial"
    open_folder(Recipe("lift", 3, 0.1, 0), folder)
    for number, success in enumerate([True, False, True, False, True]):
        write_attempt(folder, number, success, length=number + 1)
    summary = demos.collect("lift", 3, 0.1, out, workers=1, progress=False)
    root = zarr.open_group(str(out), mode="r")
    assert (summary.episodes, summary.dropped, list(summary.lengths)) == (3, 2, [1, 3, 5])
    assert list(root["meta/episode_ends"][:]) == [1, 4, 9]
    assert list(root["meta/attempt"][:]) == [0, 2, 4]
    assert list(root["data/object"][:, 0]) == [0, 2, 2, 2, 4, 4, 4, 4, 4]
    assert (root.attrs["dropped"], root.attrs["success_rate"]) == (2, 0.6)


def test_a_store_of_interrupted_episodes_says_so():
    attributes = demos._attributes(Recipe("lift", 3, 0.1, 5, interrupt_every=40), 4)
    assert attributes["interruptions"]["every"] == 40
    assert attributes["command"].endswith("--noise 0.1 --seed 5 --interrupt-every 40")


def test_a_policy_may_drive_in_interruptions(tmp_path):
    """Its weights are part of the recipe: another policy's unfinished work is not gone on with."""
    learner = CheckpointLearner.of(shipped("lift"), "lift")
    stores = [tmp_path / "led.zarr", tmp_path / "again.zarr"]
    for out in stores:
        demos.collect("lift", 1, 0.05, out, 1, 0, True, False, interrupt_every=8, learner=learner)
    root = zarr.open_group(str(stores[0]), mode="r")
    assert root.attrs["interruptions"]["learner"] == read_card(shipped("lift"))["sha256"]
    assert root.attrs["command"].endswith("--interrupt-every 8 --learner CHECKPOINT")
    assert root["data/interrupted"][:].any()
    assert files_of(stores[0]) == files_of(stores[1])
    open_folder(Recipe("lift", 1, 0.05, 0, 8), tmp_path / "other.zarr.partial")
    with pytest.raises(DatasetError, match="of another recipe"):
        demos.collect(
            "lift", 1, 0.05, tmp_path / "other.zarr", 1, interrupt_every=8, learner=learner
        )


def test_a_policy_of_another_task_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(CheckpointError, match=r"--task lift: .*can was trained for can"):
        main_collect("lift", learner=shipped("can"), out=tmp_path / "lift.zarr")
    assert not list(tmp_path.iterdir())


def test_a_learner_without_interruptions_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a learner drives in interruptions: expected"):
        main_collect("lift", learner=shipped("lift"), out=tmp_path / "lift.zarr")


def test_an_expert_that_fails_too_often_is_not_waited_for(tmp_path):
    recipe = Recipe("lift", 2, 0.1, 0)
    done = dict.fromkeys(range(recipe.attempt_limit - 1), False)
    with pytest.raises(DatasetError, match=r"expected 2 successes within 26 attempts, got 0"):
        run_attempts(recipe, tmp_path, done, 1, lambda done: None)


# --- refusals -----------------------------------------------------------------------------------


def test_an_existing_store_is_left_alone(store):
    before = files_of(store)
    with pytest.raises(OutputExistsError, match=r"lift\.zarr exists already; expected a path"):
        demos.collect("lift", 3, 0.1, store, workers=1, seed=5)
    assert files_of(store) == before


def test_work_of_another_recipe_is_left_alone(tmp_path):
    out, folder = tmp_path / "lift.zarr", tmp_path / "lift.zarr.partial"
    open_folder(Recipe("lift", 3, 0.1, 0), folder)
    write_attempt(folder, 0, True)
    with pytest.raises(
        DatasetError, match=r"another recipe: expected \{.*'noise': 0\.2.*\}, found \{.*0\.1"
    ):
        demos.collect("lift", 3, 0.2, out, workers=1)
    assert attempt_path(folder, 0).exists()


def test_somebody_elses_folder_is_left_alone(tmp_path):
    folder = tmp_path / "lift.zarr.partial"
    folder.mkdir()
    (folder / "notes.tmp").write_text("mine")
    for resume in (True, False):
        with pytest.raises(DatasetError, match=r"holds no recipe\.json"):
            demos.collect("lift", 3, 0.1, tmp_path / "lift.zarr", 1, resume=resume)
    assert (folder / "notes.tmp").read_text() == "mine"


def test_starting_anew_forgets_what_was_saved(tmp_path, monkeypatch):
    folder = tmp_path / "lift.zarr.partial"
    open_folder(Recipe("lift", 1, 0.1, 0), folder)
    write_attempt(folder, 0, True, length=9)

    def attempt_anew(recipe, folder, done, workers, report, learner):
        assert done == {}
        assert not attempt_path(folder, 0).exists()
        write_attempt(folder, 0, True, length=4)
        done[0] = True

    monkeypatch.setattr(demos, "run_attempts", attempt_anew)
    out = tmp_path / "lift.zarr"
    summary = demos.collect("lift", 1, 0.2, out, workers=1, resume=False, progress=False)
    assert list(summary.lengths) == [4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "lfit"}, "unknown task 'lfit'; expected one of: lift"),
        ({"episodes": 0}, "expected at least 1 episode, got 0"),
        ({"noise": -0.1}, r"expected noise between 0 and 1 \(action units\), got -0.1"),
        ({"noise": float("nan")}, "expected noise between 0 and 1 .* got nan"),
        ({"interrupt_every": -1}, "expected 0 or more steps between interruptions, got -1"),
        ({"seed": -1}, "expected a seed of 0 or more, got -1"),
        ({"workers": 0}, "expected at least 1 worker, got 0"),
    ],
)
def test_arguments_out_of_range(tmp_path, change, message):
    arguments = {"task": "lift", "episodes": 3, "noise": 0.1, "seed": 0, "workers": 1} | change
    with pytest.raises(ValueError, match=message):
        demos.collect(out=tmp_path / "out.zarr", **arguments)
    assert not list(tmp_path.iterdir())


# --- the command line ---------------------------------------------------------------------------


def test_the_summary(tmp_path, capsys):
    open_folder(Recipe("lift", 2, 0.1, 0), tmp_path / "lift.zarr.partial")
    for number, success in enumerate([True, False, True]):
        write_attempt(tmp_path / "lift.zarr.partial", number, success, length=10 + number)
    main_collect(episodes=2, out=tmp_path / "lift.zarr", workers=1)
    said = capsys.readouterr().out
    assert re.search(r"success\s+│ 66\.7% of 3 attempts", said)
    assert re.search(r"length\s+│ mean 11\.0, min 10, max 12", said)
    assert re.search(r"dropped\s+│ 1 ", said)
    assert "lift.zarr" in said


def test_an_existing_hdf5_is_refused_before_anything_is_made(tmp_path):
    (tmp_path / "lift.hdf5").touch()
    with pytest.raises(OutputExistsError, match=r"lift\.hdf5 exists already"):
        main_collect(out=tmp_path / "lift.zarr", hdf5=tmp_path / "lift.hdf5")
    assert [path.name for path in tmp_path.iterdir()] == ["lift.hdf5"]
