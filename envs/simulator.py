"""The only module that imports robosuite: builds its environments, quietly and reproducibly."""

from __future__ import annotations

import importlib.metadata
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

# isort: off
import asd_policy.envs.load_order  # noqa: F401 - before MuJoCo
import mujoco

# isort: on
import numpy as np

from asd_policy.envs.tasks import Task, environment_options
from asd_policy.errors import CopyError

_GIVEN = ("mesh_", "tex_", "hfield_", "skin_", "bvh_", "oct_", "name")  # of a model, by its files
_STATE = int(mujoco.mjtState.mjSTATE_INTEGRATION)


@contextmanager
def quiet_robosuite() -> Iterator[None]:
    """Drop robosuite's notices (missing macro file, optional robots, controller paths) inside.

    A filter on the logger, because robosuite resets the logger's level when imported. Errors
    pass, exceptions pass, and outside the block robosuite logs as it always does.
    """

    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    logger = logging.getLogger("robosuite_logs")
    logger.addFilter(is_error)
    try:
        yield
    finally:
        logger.removeFilter(is_error)


def environment_arguments(task: Task) -> dict[str, Any]:
    """The environment as robomimic's `env_args` describes one (type 1 is robosuite)."""
    return {
        "env_name": task.robosuite_name,
        "env_version": importlib.metadata.version("robosuite"),
        "type": 1,
        "env_kwargs": environment_options(task),
    }


def make_simulation(task: Task) -> Any:
    """robosuite's environment for `task`. Its seed is that of each reset."""
    robosuite = _import_robosuite()
    with quiet_robosuite():
        made = robosuite.make(task.robosuite_name, seed=0, **environment_options(task))
    refuse_copies(made)
    return made


def refuse_copies(sim_env: Any) -> None:
    """Have `copy.deepcopy` of robosuite's environment, and of what holds it, end in an error: its
    observables are closures, and those of a copy would read the original."""

    def refuse(memo: object) -> NoReturn:
        raise CopyError(
            "robosuite's environments cannot be copied, only this package's gymnasium environments "
            "can: a copy's observations would be the original's. Make another one, reset it with "
            "the same seed, and move the moment there (here with get_state() and set_state(), in "
            "robomimic with get_state() and reset_to())"
        )

    sim_env.__deepcopy__ = refuse  # the copy module asks the object itself


def _import_robosuite() -> Any:
    """Import it without its notices, and without its decision about OpenGL.

    On import it sets MUJOCO_GL to "egl" for this process and its children, whether or not that
    works; what the user set, or left open, is put back.
    """
    asked = os.environ.get("MUJOCO_GL")
    with quiet_robosuite():
        import robosuite
    if asked is None:
        os.environ.pop("MUJOCO_GL", None)
    else:
        os.environ["MUJOCO_GL"] = asked
    return robosuite


def reset_simulation(sim_env: Any, seed: int) -> dict[str, np.ndarray]:
    """Reset to the episode that `seed` names, whatever happened before; raw observations.

    robosuite's reset takes no seed, so the generators it draws from are replaced: its own, that
    of the placement sampler, and those of the sampler's children.
    """
    rng = np.random.default_rng(seed)
    sim_env.rng = rng
    placement = sim_env.placement_initializer
    for sampler in (placement, *getattr(placement, "samplers", {}).values()):
        sampler.rng = rng
    with quiet_robosuite():
        sim_env.reset()
    return read_observables(sim_env)


def diverged(sim_env: Any) -> str | None:
    """What MuJoCo found non-finite or huge in this episode, if anything.

    It says so in a counter and goes on from the model's default pose, as if nothing had been.
    """
    counters = sim_env.sim.data._data.warning
    names = {"BADQPOS": "positions", "BADQVEL": "velocities", "BADQACC": "accelerations"}
    for kind, name in names.items():
        if counters[int(getattr(mujoco.mjtWarning, f"mjWARN_{kind}"))].number > 0:
            return name
    return None


def read_observables(sim_env: Any) -> dict[str, np.ndarray]:
    """robosuite's named observations of the present state, and of nothing else.

    Three things would otherwise make them depend on more: MuJoCo leaves poses as they were one
    integration step (2 ms) ago, where published data was extracted from restored states, whose
    poses are current; robosuite samples observables at a phase of the control step that depends
    on how often they were read before; and its relative poses are computed from object poses of
    the pass before (zeros, after a reset), hence two passes.
    """
    mujoco.mj_kinematics(sim_env.sim.model._model, sim_env.sim.data._data)
    sim_env._update_observables(force=True)
    raw: dict[str, np.ndarray] = sim_env._get_observations(force_update=True)
    return raw


def save_physics(sim_env: Any) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """All that the next step depends on: MuJoCo's integration state, and the grippers' commands.

    The latter are robosuite's own: its grippers move their command by a step at a time.
    """
    model, data = sim_env.sim.model._model, sim_env.sim.data._data
    physics = np.empty(mujoco.mj_stateSize(model, _STATE))
    mujoco.mj_getState(model, data, physics, _STATE)
    return physics, tuple(np.array(gripper.current_action) for gripper in _grippers(sim_env))


def load_physics(
    sim_env: Any, physics: np.ndarray, commands: tuple[np.ndarray, ...], first: bool
) -> None:
    """Put back what `save_physics` returned, in the same episode.

    `first`: it was saved before the first step, and the simulation has just been reset. That step
    begins with what the controllers took in within the reset, a trifle before it ended.
    """
    model, data = sim_env.sim.model._model, sim_env.sim.data._data
    mujoco.mj_setState(model, data, physics, _STATE)
    # Velocities and poses that are computed, for whoever reads them before the next step; the
    # warm start of the solver is computed as well, and must be that of the saved state.
    mujoco.mj_forward(model, data)
    mujoco.mj_setState(model, data, physics, _STATE)
    for gripper, command in zip(_grippers(sim_env), commands, strict=True):
        gripper.current_action = np.array(command)
    for robot in () if first else sim_env.robots:
        for controller in robot.composite_controller.part_controllers.values():
            controller.new_update = True  # or it would go on from the poses it remembers


def save_model(sim_env: Any) -> dict[str, Any]:
    """What somebody may have changed of MuJoCo's model since the reset (masses, friction, gravity,
    the time step …): its numbers and options, without meshes, textures and names."""
    model = sim_env.sim.model._model
    options = {f"opt.{name}": np.array(getattr(model.opt, name)) for name in _public(model.opt)}
    return options | {name: value.copy() for name, value in _arrays(model)}


def load_model(sim_env: Any, saved: dict[str, Any]) -> None:
    """Put back what `save_model` returned, in the same episode."""
    model = sim_env.sim.model._model
    for name in _public(model.opt):
        value = saved[f"opt.{name}"]
        setattr(model.opt, name, value if value.ndim else value.item())
    for name, array in _arrays(model):
        array[...] = saved[name]


def _arrays(model: Any) -> Iterator[tuple[str, np.ndarray]]:
    for name in _public(model):
        if not name.startswith(_GIVEN) and isinstance(array := getattr(model, name), np.ndarray):
            yield name, array


def _public(holder: Any) -> list[str]:
    return [name for name in dir(holder) if not name.startswith("_")]


def _grippers(sim_env: Any) -> Iterator[Any]:
    for robot in sim_env.robots:
        yield from robot.gripper.values()


def compose_observation(task: Task, raw: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Raw robosuite observations to the published ones: float32, keys and fields in order."""
    pieces = [f.sign * np.atleast_1d(raw[f.name]) for f in task.object_fields]
    observation = {"object": np.concatenate(pieces)}
    for key in task.observation_keys:
        if key != "object":
            observation[key] = raw[key]
    return {key: np.asarray(value, dtype=np.float32) for key, value in observation.items()}
