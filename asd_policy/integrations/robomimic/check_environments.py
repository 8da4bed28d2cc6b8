"""Environments of the installed robomimic: order of `object`, seeds, pictures, a rollout."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import torch

from asd_policy.checkpoints import shipped
from asd_policy.data import object_layout
from asd_policy.envs.tasks import TASKS, Task
from asd_policy.integrations.robomimic import accelerate
from asd_policy.integrations.robomimic.check_verdict import DIFFERS, NONE, OK, Check, load, verdict
from asd_policy.integrations.robomimic_convert import environment_of, to_robomimic
from asd_policy.policy import load_checkpoint

SEED, SIZE = 100_000, 64
_NO_SIMULATOR = NONE, "not tried: robosuite is not installed"


def _make(description: dict[str, Any], **options: Any) -> Any:
    """An environment of robomimic's, whose low-dimensional keys are observed."""
    import robomimic.utils.env_utils as env_utils
    import robomimic.utils.obs_utils as obs_utils

    rgb = ["agentview_image"] if options.get("use_image_obs") else []
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": ["object"], "rgb": rgb}})
    return env_utils.create_env_from_metadata(description, **options)


def _reset(env: Any, seed: int) -> dict[str, Any]:
    """As the recorded script does it: seeded, reset, and reset to the state."""
    np.random.seed(seed)  # noqa: NPY002 - robomimic's scenes follow it
    env.reset()
    found: dict[str, Any] = env.reset_to(env.get_state())
    return found


def _simulator() -> bool:
    return importlib.util.find_spec("robosuite") is not None


def _order(task: Task) -> tuple[str, str]:
    """What the environment of an export gives, put into published order, is what is given here."""
    if not _simulator():
        return _NO_SIMULATOR
    from asd_policy.envs.simulator import (
        compose_observation,
        environment_arguments,
        read_observables,
    )

    env = _make(environment_of({"task": task.name}))
    found = _reset(env, SEED)["object"]
    columns, signs = object_layout.to_published(task.robosuite_name)
    expected = compose_observation(task, read_observables(env.env))["object"]
    status, text = verdict(signs * found[columns], expected, "its object, translated")
    old = _make({**environment_arguments(task), "env_version": "1.4.1"})
    status_14, _ = verdict(_reset(old, SEED)["object"], expected, "")
    if status_14 != OK:
        return DIFFERS, "an environment of a file of robosuite 1.4 gives another object"
    return status, text


def _seeds(task: Task) -> tuple[str, str]:
    if not _simulator():
        return _NO_SIMULATOR
    from asd_policy.data.scenes import scene_digest
    from asd_policy.envs.simulator import environment_arguments

    one, other = (_make(environment_arguments(task)) for _ in range(2))
    _reset(other, SEED + 7)  # what happened before does not matter
    first, same, third = (
        scene_digest(_reset(env, seed)) for env, seed in ((one, SEED), (other, SEED), (one, 1))
    )
    if first != same:
        return DIFFERS, "one seed, two scenes"
    return (DIFFERS, "two seeds, one scene") if first == third else (OK, "scenes follow the seed")


def _pictures() -> tuple[str, str]:
    """The right way up: a picture of robomimic's against one of this package's."""
    if not _simulator():
        return _NO_SIMULATOR
    from gymnasium.error import DependencyNotInstalled

    from asd_policy.envs.rendering import OffscreenCamera, choose_backend
    from asd_policy.envs.simulator import environment_arguments

    try:
        choose_backend()
    except DependencyNotInstalled:
        return NONE, "not tried: there is no working OpenGL"
    if importlib.util.find_spec("egl_probe") is None:  # which it imports before it draws
        return NONE, "not tried: robomimic's pictures need egl_probe, which is not installed"
    description = environment_arguments(TASKS["lift"])
    cameras = {"camera_names": ["agentview"], "camera_heights": SIZE, "camera_widths": SIZE}
    description["env_kwargs"].update(cameras)
    env = _make(description, use_image_obs=True)
    theirs = np.asarray(_reset(env, SEED)["agentview_image"], np.float64)
    if theirs.shape[0] == 3:  # 0.3 makes it ready for the network
        theirs = 255 * np.moveaxis(theirs, 0, -1)
    camera, sim = OffscreenCamera(SIZE, SIZE), env.env.sim
    ours = camera.render(sim.model._model, sim.data._data, "agentview").astype(np.float64)
    camera.close()
    upright, turned = (np.abs(theirs - made).mean() for made in (ours, ours[::-1]))
    status = OK if upright < 8 < turned else DIFFERS
    return status, f"mean difference {upright:.1f} of 255, upside down {turned:.1f}"


def _rollout() -> tuple[str, str]:
    """The shipped Lift policy, exported, in an environment of its file, by robomimic's script."""
    if not _simulator():
        return _NO_SIMULATOR
    import robomimic.utils.file_utils as file_utils
    from robomimic.scripts.run_trained_agent import rollout

    content = to_robomimic(load_checkpoint(shipped("lift")))
    policy = accelerate(load(content), "asd", window=16, verbose=False)
    env, _ = file_utils.env_from_checkpoint(ckpt_dict=content)
    np.random.seed(SEED)  # noqa: NPY002 - robomimic's scenes follow it
    torch.manual_seed(SEED)
    stats, _ = rollout(policy, env, horizon=100)
    won = stats["Success_Rate"] == 1.0
    return (OK if won else DIFFERS), f"success {won} after {stats['Horizon']} steps"


CHECKS: dict[str, Check] = {
    **{f"object, {task.name}": lambda task=task: _order(task) for task in TASKS.values()},  # type: ignore[misc]
    **{f"seeds, {task.name}": lambda task=task: _seeds(task) for task in TASKS.values()},  # type: ignore[misc]
    "pictures, upright": _pictures,
    "rollout by its script": _rollout,
}
