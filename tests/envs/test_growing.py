"""Stores that are there: left alone, grown to what they would have been, and never lost."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import zarr

from asd_policy.checkpoints import shipped
from asd_policy.envs import demos
from asd_policy.envs.attempts import attempt_path, open_folder, saved_numbers
from asd_policy.envs.recipe import Recipe
from asd_policy.errors import DatasetError, OutputExistsError
from asd_policy.training.collect import main_collect
from reference.files import files_of

OUTCOMES = [True, False, True, True, False, False, True]  # of made-up attempts


def made_up(out: Path, recipe: Recipe = Recipe(), attempts: int = len(OUTCOMES)) -> Path:  # noqa: B008
    """An unfinished collection, of as many attempts as are to be there; no simulator is needed."""
    folder = out.with_name(out.name + ".partial")
    open_folder(recipe, 1, folder)
    for number, success in enumerate(OUTCOMES[:attempts]):
        column = np.full((number + 2, 1), number, np.float32)
        arrays = {"action": column, "object": column} if success else {}
        np.savez(attempt_path(folder, number), success=success, **arrays)
    return folder


def grow(out: Path, episodes: int, **changes) -> demos.Summary:
    arguments = {"task": "lift", "noise": 0.1, "workers": 1, "progress": False} | changes
    return demos.collect(episodes=episodes, out=out, **arguments)


# --- growing ------------------------------------------------------------------------------------


def test_a_grown_store_is_the_one_made_at_once(store, tmp_path):
    out = tmp_path / "lift.zarr"
    for episodes in (1, 3):
        grow(out, episodes, seed=5, workers=episodes)
    assert files_of(out) == files_of(store)
    assert [path.name for path in tmp_path.iterdir()] == ["lift.zarr"]


def test_failed_attempts_count_in_a_grown_store(tmp_path):
    """Also attempts that wait beyond what a smaller store needed: they are kept, and used."""
    at_once, grown = tmp_path / "once.zarr", tmp_path / "grown.zarr"
    made_up(at_once)
    grow(at_once, 4)
    folder = made_up(grown)
    for episodes, waiting in ((1, [1, 2, 3, 4, 5, 6]), (2, [3, 4, 5, 6]), (3, [4, 5, 6]), (4, [])):
        summary = grow(grown, episodes)
        assert (summary.episodes, len(summary.lengths)) == (episodes, episodes)
        assert saved_numbers(folder) == waiting
    assert summary.dropped == 3
    assert list(zarr.open_group(str(grown), mode="r")["meta/attempt"][:]) == [0, 2, 3, 6]
    assert files_of(grown) == files_of(at_once)
    assert not folder.exists()


@pytest.fixture
def small(tmp_path) -> Path:
    """A store of two made-up episodes, with noise 0.05 and seed 7."""
    out = tmp_path / "lift.zarr"
    folder = made_up(out, Recipe("lift", 0.05, 7))
    grow(out, 2, noise=0.05, seed=7)
    shutil.rmtree(folder)
    return out


def test_each_difference_is_named(small):
    before = files_of(small)
    for episodes in (2, 3):
        with pytest.raises(DatasetError) as caught:
            grow(small, episodes, interrupt_every=40)
        assert str(caught.value).endswith(
            "lift.zarr was made with another recipe: --noise is 0.05 there, 0.1 here; --seed is 7 "
            "there, 0 here; --interrupt-every is 0 there, 40 here. Leave what differs out to take "
            "it from there, or choose another --out"
        )
    assert files_of(small) == before


def test_what_lies_in_a_store_is_not_removed(small):
    (small / "notes.txt").write_text("mine")
    before = files_of(small)
    assert grow(small, 2, noise=0.05, seed=7).episodes == 2
    with pytest.raises(OutputExistsError, match=r"holds more than demonstrations \(notes\.txt\)"):
        grow(small, 3, noise=0.05, seed=7)
    assert files_of(small) == before


def test_a_store_made_on_other_versions_is_used_but_does_not_grow(small):
    root = zarr.open_group(str(small), mode="r+")
    root.attrs["versions"] = {**root.attrs["versions"], "mujoco": "2.0"}
    root.attrs["max_steps"] = 149
    assert grow(small, 2, noise=0.05, seed=7).episodes == 2
    with pytest.raises(
        DatasetError, match=r"max_steps is 149 there, 150 here; versions\.mujoco is 2\.0 there, 3"
    ):
        grow(small, 3, noise=0.05, seed=7)
    assert not small.with_name("lift.zarr.partial").exists()


def test_a_store_does_not_shrink(small):
    before = files_of(small)
    with pytest.raises(DatasetError, match=r"has 2 episodes already.*--episodes 2 or more, got 1"):
        grow(small, 1, noise=0.05, seed=7)
    assert files_of(small) == before


@pytest.mark.parametrize("name", ["data/action/0.0", "data/object", "meta/episode_ends/0"])
def test_a_store_that_has_lost_a_part_does_not_grow(small, run, refused, name):
    """Nor is it used: found before attempts are made."""
    made_up(small, Recipe("lift", 0.05, 7))
    part = small / name
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    before = files_of(small.parent)
    for words in ([], ["--episodes", 4], ["--figure", small.with_name("x.png")]):
        refused(
            rf"error: {small}(: 1 of 1 chunks of .* is missing; copy| lacks the array data/)",
            *("demos", "--out", small, "--workers", 1, *words),
        )
        assert files_of(small.parent) == before


def test_a_store_without_digests_grows_into_one_that_has_them(small):
    """Stores made before there were any."""
    root = zarr.open_group(str(small), mode="r+")
    del root.attrs["array_sha256"]
    made_up(small, Recipe("lift", 0.05, 7))
    grow(small, 4, noise=0.05, seed=7)
    digests = zarr.open_group(str(small), mode="r").attrs["array_sha256"]
    assert set(digests) == {"data/action", "data/object", "meta/attempt", "meta/episode_ends"}


@pytest.mark.parametrize("share", [0.0, 0.4, 0.99])
def test_an_attempt_that_is_damaged_is_named(tmp_path, refused, run, share):
    """Its file as it was is gone on with."""
    out = tmp_path / "lift.zarr"
    attempt = attempt_path(made_up(out), 2)
    whole = attempt.read_bytes()
    attempt.write_bytes(whole[: int(share * len(whole))])
    words = ("demos", "--out", out, "--episodes", 3, "--workers", 1)
    refused(r"error: \S+attempt-000002\.npz is damaged and cannot be read: .*; remove it", *words)
    attempt.write_bytes(whole)
    assert run(*words)[0] == 0


def test_growing_needs_the_policy_that_drove(tmp_path):
    out = tmp_path / "lift.zarr"
    shutil.rmtree(made_up(out))
    made_up(out, recipe := Recipe("lift", 0.1, 0, 40, "0123456789abcdef"), attempts=1)
    with pytest.raises(DatasetError, match=r"SHA-256 0123456789ab\.\.\.\): expected its folder"):
        main_collect(out=out, episodes=2, workers=1)
    with pytest.raises(DatasetError, match=r"--learner is 0123456789abcdef there, \w{64} here"):
        main_collect(out=out, learner=shipped("lift"), workers=1)
    assert demos.standing(out) == (recipe, 1)


# --- the command --------------------------------------------------------------------------------


def test_what_is_not_given_is_taken_from_the_store(small, run, refused, monkeypatch):
    monkeypatch.chdir(small.parent)
    for words in ([], ["--noise", 0.05], ["--episodes", 2, "--seed", 7, "--task", "lift"]):
        status, said, _ = run("demos", "--out", "lift.zarr", *words)
        assert status == 0
        assert "lift.zarr is there, with 2 demonstrations of lift." in said
    refused("--seed is 7 there, 8 here", "demos", "--out", "lift.zarr", "--seed", 8)
    refused("--task is lift there, can here", "demos", "--out", "lift.zarr", "--task", "can")
    refused("a store never shrinks", "demos", "--out", "lift.zarr", "--episodes", 1)


def test_what_is_not_given_is_taken_from_unfinished_work(small, run):
    """Of a first collection, and of one that was to let a store grow."""
    first = small.with_name("first.zarr")
    folder = made_up(first, Recipe("lift", 0.05, 7))
    (folder / "recipe.json").write_text((folder / "recipe.json").read_text().replace("1,", "4,", 1))
    status, said, _ = run("demos", "--out", first)
    assert status == 0
    assert f"Collecting 4 demonstrations of lift into {first} (noise 0.05, seed 7" in said
    folder = made_up(small, Recipe("lift", 0.05, 7))
    open_folder(Recipe("lift", 0.05, 7), 4, folder)
    status, said, _ = run("demos", "--out", small, "--episodes", 2)  # what is asked for counts
    assert f"{small} is there, with 2 demonstrations" in said
    status, said, _ = run("demos", "--out", small)
    assert f"{small} has 2 demonstrations of lift: collecting up to 4 (noise 0.05" in said
    assert files_of(small) == files_of(first)


def test_the_same_command_again_makes_what_is_asked_for(store, tmp_path, run):
    """A figure is made anew; a file to which people add is kept, if it is of this store."""
    out, figure, hdf5 = (tmp_path / name for name in ("lift.zarr", "variety.png", "lift.hdf5"))
    shutil.copytree(store, out)
    words = ["--episodes", 3, "--out", out, "--figure", figure, "--hdf5", hdf5]
    written = []
    for again in (False, True):
        status, said, errors = run("demos", *words)
        assert status == 0, errors
        assert f"{out} is there, with 3 demonstrations of lift." in said
        assert (f"{hdf5} holds these episodes already, and is left as it is." in said) == again
        assert figure.stat().st_size > 10_000
        figure.write_text("old")
        written.append(hdf5.stat().st_mtime_ns)
    assert written[0] == written[1]
    status, _, errors = run("demos", *words[2:], "--episodes", 4)
    assert status == 2
    assert "does not hold the 4 episodes" in errors
    assert files_of(out) == files_of(store)


# --- killed -------------------------------------------------------------------------------------

# Grows a store from 2 to 4 made-up episodes, again and again in processes of its own, each killed
# just before another change of a file; after each, the same again must lead to the same store.
# Processes are forked before zarr has threads.
KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from asd_policy.envs import demos
here = Path(sys.argv[2]).parent
sys.path[:0] = [str(here), str(here.parent)]
from test_growing import files_of, grow, made_up

def in_child(function):
    pid = os.fork()
    if pid == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def prepare(out):
    made_up(out)
    grow(out, 2)

def killed_before(number, inside):
    changes = 0
    def hook(event, arguments):
        nonlocal changes
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT
        if writes or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"):
            changes += (".partial/store/" in str(arguments[0])) == inside
            if changes >= number:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    grow(out, 4)

def check():
    found = files_of(out if out.exists() else Path(f"{out}.partial/old"))
    assert found == old or found == new, sorted(found)
    grow(out, 4)
    assert files_of(out) == new
    assert not Path(f"{out}.partial").exists()

top = Path(sys.argv[1])
template = top / "template" / "lift.zarr"
template.parent.mkdir()
assert in_child(lambda: prepare(template)) == 0
shutil.copytree(template.parent, top / "whole")
assert in_child(lambda: grow(top / "whole" / "lift.zarr", 4)) == 0
old, new = files_of(template), files_of(top / "whole" / "lift.zarr")
assert old != new

def killed_everywhere(inside, every):
    global out
    number, status, between = 0, -9, 0
    while status == -9:
        number += every
        out = top / str(number) / "lift.zarr"
        shutil.copytree(template.parent, out.parent)
        status = in_child(lambda: killed_before(number, inside))
        between += not out.exists()
        assert in_child(check) == 0, number
        shutil.rmtree(out.parent)
    assert status == 0, status
    return number // every - 1, between

# Inside the new store, which nobody looks at yet, one moment in twenty is enough. Counted apart:
# their number differs from run to run, and must not move the kill that falls between the renames.
killed, between = killed_everywhere(inside=False, every=1)
assert between, "never between the two renames"
print("killed", killed + killed_everywhere(inside=True, every=20)[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes that it forks")
def test_a_kill_at_any_moment_loses_no_store(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), __file__],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[-1]) > 20


def test_a_store_that_is_linked_grows_where_it_is(tmp_path):
    """The link stays one, and nothing is left that would block the next run."""
    disk, link = tmp_path / "disk", tmp_path / "here" / "lift.zarr"
    disk.mkdir()
    link.parent.mkdir()
    link.symlink_to(disk / "lift.zarr")
    made_up(disk / "lift.zarr")
    for episodes in (1, 2, 3):
        grow(link, episodes)
        assert link.is_symlink()
        there = zarr.open_group(str(disk / "lift.zarr"), mode="r")["meta/attempt"]
        assert there.shape == (episodes,)
        assert [path.name for path in link.parent.iterdir()] == ["lift.zarr"]
    assert demos.standing(link) == (Recipe("lift", 0.1, 0), 3)


def test_what_a_replacement_left_behind_blocks_nothing(tmp_path):
    """Where the old store could not be removed, as a network's disk may have it; or is a link."""
    out = tmp_path / "lift.zarr"
    made_up(out)
    grow(out, 1)
    folder = out.with_name(out.name + ".partial")
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "old").symlink_to(tmp_path)
    (folder / "store").mkdir()
    assert demos.standing(out) == (Recipe("lift", 0.1, 0), 1)
    made_up_again = {number: attempt_path(folder, number) for number in range(len(OUTCOMES))}
    assert not any(path.exists() for path in made_up_again.values())
    grow(out, 1)
    assert tmp_path.exists()
