"""The order of `object` in robosuite 1.5 against the simulator, and there and back."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
import zarr

from asd_policy.data import object_layout
from asd_policy.data.robomimic_hdf5 import export_hdf5, read_hdf5
from asd_policy.envs.simulator import compose_observation, make_simulation, reset_simulation
from asd_policy.envs.tasks import TASKS, get_task


@pytest.mark.parametrize("name", TASKS)
def test_it_is_the_simulators(name) -> None:
    task = get_task(name)
    raw = reset_simulation(make_simulation(task), seed=3)
    published = compose_observation(task, raw)["object"]
    columns, signs = object_layout.to_published(task.robosuite_name)
    np.testing.assert_allclose(signs * raw["object-state"][columns], published, atol=1e-6)
    columns, signs = object_layout.from_published(task.robosuite_name)
    np.testing.assert_allclose(signs * published[columns], raw["object-state"], atol=1e-6)


def test_exported_demonstrations_have_the_order_of_their_robosuite(store, tmp_path) -> None:
    """And are read in that of the store."""
    path = tmp_path / "lift.hdf5"
    export_hdf5(store, path)
    whole = zarr.open_group(str(store), mode="r")["data/object"][:]
    with h5py.File(path) as file:
        assert json.loads(file["data"].attrs["env_args"])["object_layout"] == "1.5"
        first = file["data/demo_0/obs/object"][:]
    signs = np.array([1] * 7 + [-1] * 3)
    np.testing.assert_array_equal(first, signs * whole[: len(first)])
    np.testing.assert_array_equal(read_hdf5(path, ["object"]).observations["object"], whole)
    with h5py.File(path, "a") as file:  # as robomimic's data of robosuite 1.5, which says no more
        arguments = json.loads(file["data"].attrs["env_args"])
        del arguments["object_layout"]
        file["data"].attrs["env_args"] = json.dumps(arguments)
    np.testing.assert_array_equal(read_hdf5(path, ["object"]).observations["object"], whole)
