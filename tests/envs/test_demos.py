"""Collections: whole, in order, refused where they would do harm, and the same after a kill."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import zarr

from asd_policy.checkpoints import shipped
from asd_policy.envs import demos
from asd_policy.envs.attempts import attempt_path, open_folder, read_folder
from asd_policy.envs.crew import missing_attempts, run_attempts
from asd_policy.envs.recipe import Recipe
from asd_policy.envs.store import _attributes
from asd_policy.errors import CheckpointError, DatasetError, OutputExistsError
from asd_policy.files import claimed
from asd_policy.policy.checkpoint import read_card
from asd_policy.training.collect import CheckpointLearner, main_collect
from reference.files import files_of

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


# --- attempts that are there already ------------------------------------------------------------


def write_attempt(folder: Path, number: int, success: bool, length: int = 2) -> None:
    column = np.full((length, 1), number, np.float32)
    arrays = {"action": column, "object": column} if success else {}
    np.savez(attempt_path(folder, number), success=success, **arrays)


def test_saved_attempts_are_used_as_they_are_and_failures_are_dropped(tmp_path):
    out = tmp_path / "lift.zarr"
    folder = tmp_path / "lift.zarr.partial"
    open_folder(Recipe("lift", 0.1), 3, folder)
    for number, success in enumerate([True, False, True, False, True]):
        write_attempt(folder, number, success, length=number + 1)
    summary = demos.collect("lift", 3, 0.1, out, workers=1, progress=False)
    root = zarr.open_group(str(out), mode="r")
    assert (summary.episodes, summary.dropped, list(summary.lengths)) == (3, 2, [1, 3, 5])
    assert list(root["meta/episode_ends"][:]) == [1, 4, 9]
    assert list(root["meta/attempt"][:]) == [0, 2, 4]
    assert list(root["data/object"][:, 0]) == [0, 2, 2, 2, 4, 4, 4, 4, 4]
    assert (root.attrs["dropped"], root.attrs["success_rate"]) == (2, 0.6)


def test_a_file_of_another_program_in_the_folder_of_attempts_is_left(tmp_path):
    """A desktop's, or the lock that a network's file system keeps while it is open."""
    out, folder = tmp_path / "lift.zarr", tmp_path / "lift.zarr.partial"
    open_folder(Recipe("lift", 0.1), 1, folder)
    write_attempt(folder, 0, True)
    (folder / ".DS_Store").touch()
    for _ in range(2):
        assert demos.collect("lift", 1, 0.1, out, workers=1, progress=False).episodes == 1
        assert read_folder(folder) is None
    assert [path.name for path in folder.iterdir()] == [".DS_Store"]


def test_a_store_of_interrupted_episodes_says_so():
    attributes = _attributes(Recipe("lift", 0.1, 5, interrupt_every=40), 3, 4)
    assert attributes["interruptions"]["every"] == 40
    assert attributes["command"].endswith("--noise 0.1 --seed 5 --interrupt-every 40")


def test_a_policy_may_drive_in_interruptions(tmp_path):
    """Its weights are part of the recipe: another policy's unfinished work is not gone on with."""
    learner = CheckpointLearner.of(shipped("lift"), "lift")
    stores = [tmp_path / "led.zarr", tmp_path / "again.zarr"]
    for out in stores:
        demos.collect("lift", 1, 0.05, out, 1, 0, False, interrupt_every=8, learner=learner)
    root = zarr.open_group(str(stores[0]), mode="r")
    assert root.attrs["interruptions"]["learner"] == read_card(shipped("lift"))["sha256"]
    assert root.attrs["command"].endswith("--interrupt-every 8 --learner CHECKPOINT")
    assert root["data/interrupted"][:].any()
    assert files_of(stores[0]) == files_of(stores[1])
    open_folder(Recipe("lift", 0.05, 0, 8), 1, tmp_path / "other.zarr.partial")
    write_attempt(tmp_path / "other.zarr.partial", 0, True)
    with pytest.raises(DatasetError, match="with another recipe: --learner is none there"):
        demos.collect(
            "lift", 1, 0.05, tmp_path / "other.zarr", 1, interrupt_every=8, learner=learner
        )


def test_a_policy_of_another_task_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(CheckpointError, match=r"--task lift: .*can was trained for can"):
        main_collect("lift", learner=shipped("can"), out=tmp_path / "lift.zarr")
    assert not list(tmp_path.iterdir())


def test_a_learner_without_interruptions_is_refused(tmp_path):
    with pytest.raises(ValueError, match="needs --interrupt-every STEPS"):
        main_collect("lift", learner=shipped("lift"), out=tmp_path / "lift.zarr")


def test_an_expert_that_fails_too_often_is_not_waited_for(tmp_path):
    done = dict.fromkeys(range(25), False)  # of 20 + 3 · 2 attempts, 2 must succeed
    with pytest.raises(DatasetError, match=r"expected 2 successes within 26 attempts, got 0"):
        run_attempts(Recipe(), 2, tmp_path, done, 1)


@pytest.mark.parametrize(
    ("done", "at_most", "missing"),
    [
        ({}, 9, [0, 1, 2]),
        ({}, 2, [0, 1]),
        ({0: False, 2: True}, 9, [1, 3]),
        ({0: True, 1: True, 2: True}, 9, []),
        ({0: True, 1: False, 2: True, 3: False}, 9, [4]),
    ],
)
def test_attempts_begin_only_where_those_before_cannot_be_enough(done, at_most, missing):
    assert missing_attempts(3, done, at_most) == missing


def test_what_a_longer_run_failed_in_behind_those_needed_does_not_count():
    done = {number: number % 8 < 5 for number in range(160)}  # 60 failures, 6 in the first 16
    assert missing_attempts(10, done, 1) == []
    with pytest.raises(DatasetError, match="within 50 attempts, got 100 in 160"):
        missing_attempts(10, {number: number >= 60 for number in done}, 1)


def test_a_number_of_episodes_without_end_is_no_list_without_end():
    assert missing_attempts(10**15, {}, 2) == [0, 1]


# --- refusals -----------------------------------------------------------------------------------


def test_work_of_another_recipe_is_left_alone(tmp_path):
    out, folder = tmp_path / "lift.zarr", tmp_path / "lift.zarr.partial"
    open_folder(Recipe("lift", 0.1), 3, folder)
    write_attempt(folder, 0, True)
    with pytest.raises(
        DatasetError,
        match=r"with another recipe: --noise is 0\.1 there, 0\.2 here; --seed is 0 there, 4 here\.",
    ):
        demos.collect("lift", 3, 0.2, out, workers=1, seed=4)
    assert attempt_path(folder, 0).exists()


def test_a_recipe_of_which_nothing_was_made_does_not_matter(tmp_path):
    open_folder(Recipe("lift", 0.1), 3, tmp_path / "lift.zarr.partial")
    assert demos.standing(tmp_path / "lift.zarr") is None
    open_folder(Recipe("lift", 0.2), 5, tmp_path / "lift.zarr.partial")


def test_somebody_elses_folder_is_left_alone(tmp_path):
    folder = tmp_path / "lift.zarr.partial"
    folder.mkdir()
    (folder / "notes.tmp").write_text("mine")
    with pytest.raises(DatasetError, match=r"holds no recipe\.json"):
        demos.collect("lift", 3, 0.1, tmp_path / "lift.zarr", 1)
    assert [path.name for path in folder.iterdir()] == ["notes.tmp"]
    (folder / "recipe.json").write_text('{"noise": 0.1}')
    with pytest.raises(DatasetError, match=r"holds no unfinished demonstrations that this version"):
        demos.collect("lift", 3, 0.1, tmp_path / "lift.zarr", 1)


def test_two_runs_do_not_work_on_one_store(tmp_path):
    with (
        claimed(tmp_path / "lift.zarr.partial"),
        pytest.raises(OutputExistsError, match=r"another process is at work in .*partial"),
    ):
        demos.collect("lift", 3, 0.1, tmp_path / "lift.zarr", 1)


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
    out = tmp_path / "runs[" / "b]" / "lift.zarr"  # a path that rich would read as markup
    folder = out.with_name("lift.zarr.partial")
    open_folder(Recipe("lift", 0.1), 2, make(folder))
    for number, success in enumerate([True, False, True]):
        write_attempt(folder, number, success, length=10 + number)
    main_collect(episodes=2, out=out, workers=1)
    said = capsys.readouterr().out
    assert re.search(r"success\s+│ 66\.7% of 3 attempts", said)
    assert re.search(r"length\s+│ mean 11\.0, min 10, max 12", said)
    assert re.search(r"dropped\s+│ 1 ", said)
    assert str(out) in re.sub(r"[\s│]", "", said.partition("│ path")[2])
    assert f"Collecting 2 demonstrations of lift into {out} (noise 0.1, seed 0; 1 worker" in said
    assert "kept of an earlier run: 3 attempts)." in said


def make(folder: Path) -> Path:
    folder.parent.mkdir(parents=True)
    return folder


def test_an_hdf5_of_something_else_is_refused_before_anything_is_made(tmp_path):
    (tmp_path / "lift.hdf5").touch()
    with pytest.raises(OutputExistsError, match=r"lift\.hdf5 exists already, and does not hold"):
        main_collect(out=tmp_path / "lift.zarr", hdf5=tmp_path / "lift.hdf5")
    assert [path.name for path in tmp_path.iterdir()] == ["lift.hdf5"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--episodes", 0], "error: expected at least 1 episode, got 0"),
        (["--workers", 0], "error: expected at least 1 worker, got 0"),
        (["--seed", -1], "error: expected a seed of 0 or more, got -1"),
        (["--noise", "nan"], "error: expected noise between 0 and 1 .*, got nan"),
        (["--noise", 2], "error: expected noise between 0 and 1 .*, got 2"),
        (["--interrupt-every", -3], "error: expected 0 or more steps between interruptions"),
        (["--learner", "nowhere"], "error: .*nowhere"),
        (["--out", "/proc/x.zarr"], "error: /proc/x.zarr could not be written: No such file"),
        (["--out", "file/x.zarr"], "error: .*file/x.zarr could not be written: Not a directory"),
        (["--out", "file"], "error: file is there, and is no store of demonstrations"),
        (["--out", "folder"], "error: folder is there, and is no store of demonstrations"),
        (["--out", "other"], "error: .*other.partial holds no recipe.json"),
        (["--figure", "/proc/x.png"], "error: /proc/x.png could not be written: No such file"),
        (["--figure", "file/x.png"], "error: .*file/x.png could not be written: Not a directory"),
        (["--figure", "folder.png"], "error: folder.png is a folder; expected a path for a file"),
        (["--hdf5", "file/x.hdf5"], "error: .*file/x.hdf5 could not be written: Not a directory"),
    ],
)
def test_mistakes_are_one_message(refused, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    for name in ("folder", "folder.png", "other.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    refused(message, "demos", *words)
    assert sorted(tmp_path.rglob("*")) == before
