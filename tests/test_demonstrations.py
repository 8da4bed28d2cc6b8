"""What `train` takes from files of demonstrations: a task's observations, in its order."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from asd_policy.data.replay import load_replay, save_npz
from asd_policy.envs.tasks import environment_options, get_task
from asd_policy.errors import CheckpointError, DatasetError, InputError, OutputExistsError
from asd_policy.policy import DiffusionPolicy, load_checkpoint, save_checkpoint, update_card
from asd_policy.training.collect import CheckpointLearner
from asd_policy.training.demonstrations import load_demonstrations, load_own
from asd_policy.training.main import main_train
from reference.tiny import tiny_checkpoint

zarr = pytest.importorskip("zarr")
LIFT = get_task("lift")
KEYS = dict(LIFT.observation_keys)


def arrays(**sizes: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    dims = KEYS | {"action": 7} | sizes
    return {key: rng.uniform(-1, 1, (30, dim)).astype(np.float32) for key, dim in dims.items()}


def write_zarr(path: Path, rows: dict[str, np.ndarray], **attributes: object) -> Path:
    root = zarr.open_group(str(path), mode="w")
    for key, values in rows.items():
        root[f"data/{key}"] = values
    root["meta/episode_ends"] = np.array([12, 30])
    root.attrs.update(attributes)
    return path


def write_hdf5(path: Path, rows: dict[str, np.ndarray], env_args: dict[str, object]) -> Path:
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps(env_args)
        for episode, part in enumerate((slice(0, 12), slice(12, 30))):
            demo = file.create_group(f"data/demo_{episode}")
            demo["actions"] = rows["action"][part]
            for key in KEYS:
                demo[f"obs/{key}"] = rows[key][part]
    return path


def train(*stores: Path, out: Path, **changes: object) -> None:
    main_train(
        out=out, data=stores,
        **{"batch_size": 4, "down_dims": (8, 16), "diffusion_steps": 4, "device": "cpu", "steps": 2}
        | changes,
    )  # fmt: skip


@pytest.mark.parametrize("rotations", ["matrix", "quaternion"])
def test_an_npz_in_another_order_is_put_into_the_task_s(rotations: str, tmp_path: Path) -> None:
    """Rotations are found by their columns."""
    store = write_zarr(tmp_path / "a.zarr", arrays())
    replay = load_replay(store, list(KEYS))
    turned = dict(reversed(replay.observations.items()))
    save_npz(dataclasses.replace(replay, observations=turned), tmp_path / "b.npz")
    for data, out in ((store, "a"), (tmp_path / "b.npz", "b")):
        train(data, out=tmp_path / out, rotations=rotations)
    digests = {load_checkpoint(tmp_path / out).card["sha256"] for out in "ab"}
    assert len(digests) == 1


def test_what_is_not_a_task_s_is_refused_in_a_table(tmp_path: Path) -> None:
    for sizes, problem in [
        ({"action": 5}, r"action +wrong shape +\(7,\) +\(5,\)"),
        ({"object": 4}, r"object +wrong shape +\(10,\) +\(4,\)"),
    ]:
        store = write_zarr(tmp_path / "odd.zarr", arrays(**sizes))
        with pytest.raises(DatasetError, match=rf"(?s)does not hold what lift is .*{problem}"):
            train(store, out=tmp_path / "out")
    replay = load_replay(write_zarr(tmp_path / "a.zarr", arrays()), list(KEYS))
    observations = {"x": replay.observations["object"]}
    save_npz(dataclasses.replace(replay, observations=observations), tmp_path / "x.npz")
    with pytest.raises(DatasetError, match="lacks the observations object, robot0_eef_pos"):
        train(tmp_path / "x.npz", out=tmp_path / "out")
    with pytest.raises(DatasetError, match="does not hold what can is"):
        load_demonstrations(tmp_path / "a.zarr", get_task("can"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("version", ["1.4.1", "1.5.1"])
@pytest.mark.parametrize("as_text", [True, False])
def test_stores_are_read_in_published_order_as_hdf5_is(
    version: str, as_text: bool, tmp_path: Path
) -> None:
    env_args = {"env_name": "Lift", "env_version": version}
    rows = arrays()
    file = write_hdf5(tmp_path / "a.hdf5", rows, env_args)
    said = json.dumps(env_args) if as_text else env_args
    store = write_zarr(tmp_path / "a.zarr", rows, env_args=said)
    one, other = (load_demonstrations(path, LIFT) for path in (file, store))
    for key in KEYS:
        np.testing.assert_array_equal(one.observations[key], other.observations[key])
    changed = not np.array_equal(other.observations["object"], rows["object"])
    assert changed == (version == "1.5.1")
    for read in (one, other):  # what was translated is not translated again
        save_npz(read, tmp_path / "a.npz")
        again = load_demonstrations(tmp_path / "a.npz", LIFT)
        np.testing.assert_array_equal(again.observations["object"], one.observations["object"])
    odd = write_zarr(tmp_path / "b.zarr", rows, env_args=said, format="v2")  # its owner's own word
    again = load_demonstrations(odd, LIFT)
    np.testing.assert_array_equal(again.observations["object"], one.observations["object"])


def test_what_this_package_wrote_is_in_that_order(tmp_path: Path) -> None:
    rows, env_args = arrays(), {"env_name": "Lift", "env_version": "1.5.2"}
    made = {"format": "asd-policy demonstrations 1", "env_args": env_args}
    store = write_zarr(tmp_path / "own.zarr", rows, **made)
    np.testing.assert_array_equal(
        load_demonstrations(store, LIFT).observations["object"], rows["object"]
    )


def test_a_version_that_is_none_is_named(tmp_path: Path) -> None:
    env_args = {"env_name": "Lift", "env_version": "new"}
    store = write_zarr(tmp_path / "a.zarr", arrays(), env_args=env_args)
    with pytest.raises(DatasetError, match=r"a.zarr: env_version is 'new'"):
        load_demonstrations(store, LIFT)


def test_numbers_that_json_has_not_are_said_as_text(tmp_path: Path) -> None:
    note = {"loss": float("nan"), "range": [1.0, float("inf")]}
    train(write_zarr(tmp_path / "a.zarr", arrays(), note=note), out=tmp_path / "out")
    said = load_checkpoint(tmp_path / "out").card["training_data"]["store"]["note"]
    assert said == {"loss": "nan", "range": [1.0, "inf"]}


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, capsys) -> None:
    store, out = write_zarr(tmp_path / "a.zarr", arrays()), tmp_path / "out"
    train(store, out=out)
    update_card(out, success={"ddpm": 1})
    before = (out / "card.json").read_bytes()
    train(store, out=out)
    said = " ".join(capsys.readouterr().out.split())
    assert "has been trained to the end, and is left as it is" in said
    with pytest.raises(OutputExistsError, match="already holds a checkpoint"):
        train(store, out=out, resume=False, seed=5)
    with pytest.raises(
        CheckpointError, match=r"steps 2 there, 5 now.*choose another --out"
    ) as error:
        train(store, out=out, steps=5)  # not told to start over, which it could not
    assert "--no-resume" not in str(error.value)
    assert (out / "card.json").read_bytes() == before


@pytest.mark.parametrize("identity", [{}, [1], {"demonstrations": None}])
def test_a_state_of_something_else_is_said_to_be_damaged(identity, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    torch.save({"identity": identity}, tmp_path / "out" / "train_state.pt")
    store = write_zarr(tmp_path / "a.zarr", arrays())
    with pytest.raises(CheckpointError, match=r"train_state.pt is damaged.*--no-resume"):
        train(store, out=tmp_path / "out")


def test_a_learner_of_other_actions_is_refused(tmp_path: Path) -> None:
    made = tiny_checkpoint(observation_keys=KEYS, action_dim=5)
    save_checkpoint(tmp_path / "five", made)
    with pytest.raises(InputError, match=r"'lift' takes actions of 7 numbers.*makes actions of 5"):
        CheckpointLearner.of(tmp_path / "five", "lift")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"control_freq": 10}, "control_freq +10 +20"),
        ({"robots": ["Sawyer"]}, "robots +.'Sawyer'. +.'Panda'."),
        ({"controller_configs": ["mine"]}, "controller 0 +mine"),
    ],
)
def test_another_robot_s_demonstrations_are_refused(tmp_path: Path, changes, said) -> None:
    """A policy of them would be let loose on the task's."""
    kwargs = environment_options(get_task("lift")) | {"has_renderer": True} | changes
    env_args = {"env_name": "Lift", "env_version": "1.5.1", "type": 1, "env_kwargs": kwargs}
    store = write_zarr(tmp_path / "a.zarr", arrays(), env_args=env_args)
    if said is None:
        load_demonstrations(store, get_task("lift"))
        return
    with pytest.raises(DatasetError, match=rf"another environment than .* 'lift'(.|\n)*{said}"):
        load_demonstrations(store, get_task("lift"))


def test_a_robot_of_ones_own(tmp_path, capsys, monkeypatch) -> None:
    """Observations that are named, actions in pixels: the policy is loaded and acts in them."""
    rng = np.random.default_rng(0)
    pixels = rng.uniform(100, 400, (30, 2)).astype(np.float32)
    rows = {"state": rng.normal(size=(30, 5)), "far": pixels / 7, "unseen": pixels}
    store = write_zarr(tmp_path / "push.t.zarr", rows | {"action": pixels})
    how = {"steps": 4, "batch_size": 4, "diffusion_steps": 4, "down_dims": (8, 16), "threads": 1}
    monkeypatch.chdir(tmp_path)
    main_train(observations=("state", "far"), data=(store,), **how)
    assert "Training state, far: " in capsys.readouterr().out
    policy = DiffusionPolicy.load("outputs/train/push.t")  # another than that of push.u.zarr
    assert policy.observation_keys == {"state": 5, "far": 2}
    assert "task" not in policy.card
    policy.reset(0)
    action = policy.act({"state": np.zeros(5), "far": pixels[0] / 7})
    assert action.shape == (2,)
    assert (pixels.min(0) - 1e-3 <= action).all()
    assert (action <= pixels.max(0) + 1e-3).all()


def test_digits_that_float32_has_not_are_named(tmp_path) -> None:
    """A place on a map, in metres: trained on, all its steps within half a metre were one."""
    rows = {key: values.astype(float) for key, values in arrays().items()}
    rows["object"][:, 1] += 5_200_000
    rows["object"][:, 0] = 5_200_000.1  # never another: a network learns nothing from it
    match = r"column 1 of data/object lies between 5199999\.\d+ and 5200000\.\d+, and float32"
    with pytest.raises(DatasetError, match=match):
        load_own(write_zarr(tmp_path / "map.zarr", rows), ["object"])
    rows["object"][:, 1] -= 5_200_000
    load_own(write_zarr(tmp_path / "here.zarr", rows), ["object"])


def test_own_data_is_the_same_in_every_format(tmp_path) -> None:
    rows = arrays()
    rows["action"] = 200 * rows["action"]
    strange = {"env_name": "Kitchen", "type": 1, "env_kwargs": {}, "env_version": "1.5.1"}
    store = write_zarr(tmp_path / "x.zarr", rows)
    save_npz(load_own(store, list(KEYS)), tmp_path / "x.npz")
    files = store, tmp_path / "x.npz", write_hdf5(tmp_path / "x.h5", rows, strange)
    for file in files:
        found = load_own(file, ["object"])  # its order is the robot's
        assert list(found.observations) == ["object"]
        assert np.array_equal(found.observations["object"], rows["object"])
        assert np.array_equal(found.actions, rows["action"])
    with pytest.raises(DatasetError, match=r"actions must lie in \[−1, 1\]"):
        load_replay(files[0], list(KEYS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "lift"}, "a robot of your own; leave --task out"),
        ({"data": ()}, "expected its --data"),
        ({"rotations": "matrix"}, "--rotations matrix is for tasks"),
        ({"observations": ("object", "object")}, "names one of them twice"),
        ({"observations": ("object", "action")}, "data/action is what a policy is to find"),
        ({"observations": ("state",)}, r"lacks the arrays data/state; its data holds: action, "),
    ],
)
def test_options_of_ones_own_robot(tmp_path, options, message) -> None:
    store = write_zarr(tmp_path / "x.zarr", arrays())
    with pytest.raises(ValueError, match=message):
        main_train(**{"observations": ("object",), "data": (store,)} | options)
