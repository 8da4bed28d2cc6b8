"""The data that `asd-policy train --observations` takes, given to `verify` and `bench`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from asd_policy.data.replay import Replay, save_npz
from asd_policy.data.zarr_store import write_zarr
from asd_policy.errors import DatasetError
from asd_policy.eval.demonstrations import load_demonstrations
from asd_policy.eval.studies.bench.options import BenchOptions
from asd_policy.eval.studies.bench.run import load_subjects
from asd_policy.eval.studies.verify.moments import find_moments
from asd_policy.eval.studies.verify.options import VerifyOptions
from asd_policy.policy import save_checkpoint
from reference.tiny import KEYS, tiny_checkpoint, tiny_replay


def strangers() -> Replay:
    """Demonstrations that hold more than the policy sees, of actions in units of their own."""
    replay = tiny_replay()
    more = {"force": np.ones((len(replay.actions), 6), np.float32)}
    return replace(
        replay, observations=more | replay.observations, actions=100 * replay.actions, attributes={}
    )


@pytest.fixture(params=["zarr", "npz", "hdf5"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    replay, path = strangers(), tmp_path / f"mine.{request.param}"
    if request.param == "npz":
        save_npz(replay, path)
    elif request.param == "hdf5":
        write_hdf5(replay, path)
    else:
        pytest.importorskip("zarr")
        arrays = {f"data/{key}": rows for key, rows in replay.observations.items()}
        arrays |= {"data/action": replay.actions, "meta/episode_ends": replay.episode_ends}
        write_zarr(path, arrays, {})  # which names no observations
    return path


def write_hdf5(replay: Replay, path: Path) -> None:
    """In robomimic's layout, of a robot without an environment."""
    h5py = pytest.importorskip("h5py")
    begin = 0
    with h5py.File(path, "w") as file:
        for number, end in enumerate(replay.episode_ends):
            demo = file.create_group(f"data/demo_{number}")
            demo["actions"] = replay.actions[begin:end]
            for key, rows in replay.observations.items():
                demo[f"obs/{key}"] = rows[begin:end]
            begin = end


def test_verify_samples_at_observations_of_a_strangers_store(data: Path) -> None:
    options = VerifyOptions(source=data, observations=3)
    windows, origin = find_moments(options, tiny_checkpoint(), None, print)
    rows = np.concatenate([strangers().observations[key] for key in KEYS], axis=1)
    assert origin == f"demonstrations in {data.name}"
    assert windows.shape == (3, 2, rows.shape[1])
    assert all((rows == now).all(1).any() for _, now in windows)


def test_of_a_tasks_hdf5_the_layout_must_be_known(tmp_path: Path) -> None:
    write_hdf5(strangers(), tmp_path / "mine.hdf5")
    options = VerifyOptions(source=tmp_path / "mine.hdf5", observations=3)
    with pytest.raises(DatasetError, match="env_args"):
        find_moments(options, tiny_checkpoint(), "lift", print)


def test_bench_conditions_chunks_on_a_strangers_store(data: Path, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "tiny", tiny_checkpoint())
    options = BenchOptions(networks=("shipped", str(folder)), data=data, device="cpu")
    found = {name: each.conditions_from for name, each in load_subjects(options, "cpu").items()}
    assert found[str(folder)] == "the demonstrations given"
    assert found["shipped"] == "64 moments of Lift demonstrations"


def test_a_store_that_names_nothing_wants_a_policy(data: Path) -> None:
    told = r"does not name its observation_keys|\[−1, 1\]|does not say which of its observations"
    with pytest.raises(DatasetError, match=told):
        load_demonstrations(data)
