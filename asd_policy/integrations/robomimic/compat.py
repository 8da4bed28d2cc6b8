"""Differences between library versions, one function for each; nothing is done where not needed.

Applied by importing ``asd_policy.integrations.robomimic``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import json
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asd_policy.data.robomimic_hdf5 import has_published_layout
from asd_policy.envs.described import ROBOSUITE, migrated
from asd_policy.envs.opengl import before_mujoco
from asd_policy.errors import IntegrationError
from asd_policy.files import replacing
from asd_policy.integrations.robomimic.actions import ActionScale, statistics_of
from asd_policy.integrations.robomimic_format import (
    ALGO_NAME,
    GROUPS,
    NETWORK_PREFIX,
    architecture,
    groups_in,
    groups_of,
    offset_and_scale,
    with_training_length,
)
from asd_policy.integrations.torchvision_operators import import_torchvision

KNOWN_VERSIONS = ("0.3", "0.5")


def robomimic_version() -> tuple[int, int]:
    """(major, minor) of the installed robomimic.

    Raises:
        IntegrationError: it is not installed, or of a release that is not known here; 0.4 has
            no diffusion policy, and is none of the releases that this package gives one.
    """
    known = ", ".join(f"{version}.x" for version in KNOWN_VERSIONS)
    try:
        text = importlib.metadata.version("robomimic")
    except importlib.metadata.PackageNotFoundError as error:
        raise IntegrationError(
            f"robomimic is not installed (known releases: {known}): "
            "pip install 'asd-policy[sim,robomimic]'"
        ) from error
    if text.split(".")[:2] == ["0", "4"]:
        raise IntegrationError(
            f"robomimic {text} has no diffusion policy: 0.3.0 gets one from this package, and 0.5 "
            "(from its source) has its own"
        )
    if ".".join(text.split(".")[:2]) not in KNOWN_VERSIONS:
        raise IntegrationError(f"expected robomimic {known}, got {text}")
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def stub_mujoco_py() -> None:
    """robomimic 0.3 imports ``mujoco_py`` for the name of one exception.

    That package was given up in 2022 and does not build on present Pythons; robosuite 1.4 and
    later use ``mujoco``. Where it is installed, it is left alone.
    """
    if "mujoco_py" in sys.modules or importlib.util.find_spec("mujoco_py"):
        return
    stub, builder = types.ModuleType("mujoco_py"), types.ModuleType("mujoco_py.builder")
    builder.MujocoException = type("MujocoException", (Exception,), {})  # type: ignore[attr-defined]
    stub.builder = builder  # type: ignore[attr-defined]
    sys.modules.update({"mujoco_py": stub, "mujoco_py.builder": builder})


def broadcast_normalization(obs_utils: Any) -> None:
    """robomimic 0.3's ``normalize_obs`` refuses stacked frames, and keys without statistics.

    A diffusion policy is given To frames, and an environment returns more than a policy needs
    (joint positions, time steps). Statistics of 0.5 have other names, and are understood.
    robomimic 0.5 has another function, and needs nothing.
    """
    if not hasattr(obs_utils, "normalize_obs"):
        return

    def normalize_obs(obs_dict: dict[str, Any], obs_normalization_stats: Any) -> dict[str, Any]:
        keys = [key for key in obs_dict if key in obs_normalization_stats]
        for key, parts in offset_and_scale(obs_normalization_stats, keys, "observation").items():
            value = obs_dict[key]
            if not isinstance(value, np.ndarray):
                parts = value.new_tensor(parts[0]), value.new_tensor(parts[1])
            obs_dict[key] = (value - parts[0]) / parts[1]
        return obs_dict

    obs_utils.normalize_obs = normalize_obs


def normalize_once(sequence_dataset: Any) -> None:
    """robomimic 0.3 normalizes observations in its dataset, and again in each batch.

    The second time is the right one (it knows pictures as the network sees them, and it is what a
    rollout does), so the dataset returns what its file holds. 0.5 does so.
    """

    def fetching(get_item: Any) -> Any:
        def raw(self: Any, index: int) -> Any:
            normalizes, self.hdf5_normalize_obs = self.hdf5_normalize_obs, False
            try:
                return get_item(self, index)
            finally:
                self.hdf5_normalize_obs = normalizes

        return raw

    replace(sequence_dataset, "get_item", fetching)


def replace(module: Any, name: str, wrapper: Callable[[Any], Any]) -> None:
    """Put ``wrapper(function)`` in a function's place, once."""
    function = getattr(module, name)
    if not hasattr(function, "_asd_policy"):
        wrapped = wrapper(function)
        wrapped._asd_policy = True
        setattr(module, name, wrapped)


def keep_action_statistics(file_utils: Any, train_utils: Any, rollout_policy: Any) -> None:
    """robomimic 0.3 neither saves nor loads ``action_normalization_stats``, which 0.5 has.

    Actions would come out in [−1, 1] instead of their own units. Diffusion policies are saved with
    all that 0.5 asks for when it loads them.
    """

    def loading(load: Any) -> Any:
        def policy_from_checkpoint(*args: Any, **kwargs: Any) -> Any:
            policy, checkpoint = load(*args, **kwargs)
            policy.action_normalization_stats = checkpoint.get("action_normalization_stats")
            policy.policy.action_normalization_stats = policy.action_normalization_stats
            return policy, checkpoint

        return policy_from_checkpoint

    def acting(call: Any) -> Any:
        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
            action = call(self, *args, **kwargs)
            statistics = statistics_of(self)
            if statistics is None:
                return action
            scale = ActionScale.of(statistics, self.policy.global_config)
            return scale.unnormalize(torch.from_numpy(action)).numpy()

        return __call__

    def saving(save: Any) -> Any:
        def save_model(model: Any, *args: Any, **kwargs: Any) -> None:
            save(model, *args, **kwargs)
            if getattr(getattr(model, "global_config", None), "algo_name", None) == ALGO_NAME:
                path = _argument(save, "ckpt_path", model, *args, **kwargs)
                _complete_file(path, model.action_normalization_stats)

        return save_model

    replace(file_utils, "policy_from_checkpoint", loading)
    replace(train_utils, "save_model", saving)
    replace(rollout_policy, "__call__", acting)


def _argument(function: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    return inspect.signature(function).bind(*args, **kwargs).arguments[name]


def _complete_file(path: str, action_statistics: Any) -> None:
    """A diffusion policy's file that this process has just written, as 0.5 writes it."""
    content = torch.load(path, map_location="cpu", weights_only=False)
    content["config"] = json.dumps(with_training_length(json.loads(content["config"])), indent=4)
    for parts in (content.get("obs_normalization_stats") or {}).values():
        parts.update(offset=parts["mean"], scale=parts["std"])
    if action_statistics is not None:
        content["action_normalization_stats"] = {
            key: {name: np.asarray(value).tolist() for name, value in parts.items()}
            for key, parts in action_statistics.items()
        }
    with replacing(Path(path)) as file:
        torch.save(content, file)


# ---- environments -------------------------------------------------------------------------------


def migrate_environments(env_utils: Any, read_anew: bool) -> None:
    """robomimic's environments of data before robosuite 1.5 are made for 1.5 here.

    Besides :func:`migrated`: ``object`` has the order of the data that a policy was trained on;
    scenes follow NumPy's seed, as before 1.5, where robosuite has generators of its own; and with
    ``read_anew`` (on 0.3), or for a file of this package, observations are read anew, because
    after a reset 1.5's relative poses are zeros.
    """
    if importlib.metadata.version("robosuite").split(".")[:2] < ["1", "5"]:
        return

    def wrapper(create: Any) -> Any:
        def create_env_from_metadata(env_meta: Any, *args: Any, **kwargs: Any) -> Any:
            env = create(migrated(env_meta), *args, **kwargs)
            if env_meta.get("type") == ROBOSUITE:
                from asd_policy.integrations.robomimic.environments import adapt

                anew = read_anew or "object_layout" in env_meta
                adapt(env, has_published_layout(env_meta), anew)
            return env

        return create_env_from_metadata

    replace(env_utils, "create_env_from_metadata", wrapper)


def accept_wrapped_environments() -> None:
    """``run_trained_agent`` of robomimic 0.3 wants an ``EnvBase``, which its own wrapper that
    stacks frames is not; 0.5 knows both."""
    from robomimic.envs.env_base import EnvBase
    from robomimic.envs.wrappers import EnvWrapper

    EnvBase.register(EnvWrapper)


def fit_networks(algorithm: Any) -> None:
    """robomimic 0.5 builds networks of its default sizes, whatever a configuration says; where the
    weights that are loaded are of another size, the network is built as they are. What it saves
    tells the number of groups, which weights do not.

    Exported policies are smaller than the default.
    """

    def fitting(deserialize: Any) -> Any:
        def wrapped(self: Any, model_dict: Any, *args: Any, **kwargs: Any) -> Any:
            _fit_network(self, model_dict)
            return deserialize(self, model_dict, *args, **kwargs)

        return wrapped

    def telling(serialize: Any) -> Any:
        def wrapped(self: Any) -> Any:
            network = self.nets["policy"]["noise_pred_net"]
            return {**serialize(self), GROUPS: groups_in(network)}

        return wrapped

    replace(algorithm, "deserialize", fitting)
    replace(algorithm, "serialize", telling)


def _fit_network(algo: Any, model: Mapping[str, Any]) -> None:
    start = len(NETWORK_PREFIX)
    own = {k[start:]: v for k, v in model["nets"].items() if k.startswith(NETWORK_PREFIX)}
    network = algo.nets["policy"]["noise_pred_net"]
    groups = groups_of(model, algo.algo_config, own)
    sizes = architecture(own, groups)
    built = architecture(network.state_dict(), groups_in(network))
    ends = ("input_dim", "global_cond_dim", "cond_predict_scale")
    if sizes == built or any(sizes[end] != built[end] for end in ends):
        return  # as it is, or robomimic's own message says what does not fit
    known = inspect.signature(type(network)).parameters
    made = type(network)(**{name: value for name, value in sizes.items() if name in known})
    made.final_conv[0].block[1].num_groups = groups  # its last block has 8, whatever is asked for
    algo.nets["policy"]["noise_pred_net"] = made.float().to(algo.device)
    if algo.ema is not None:
        algo.ema = type(algo.ema)(model=algo.nets, power=algo.algo_config.ema.power)
    algo._create_optimizers()


def apply(version: tuple[int, int]) -> None:
    """All fixes that this release of robomimic needs; a second call changes nothing."""
    before_mujoco()
    import_torchvision()
    if version < (0, 4):
        _apply_to_03()
    else:
        from robomimic.algo.diffusion_policy import DiffusionPolicyUNet

        fit_networks(DiffusionPolicyUNet)
    if importlib.util.find_spec("robosuite"):
        import robomimic.utils.env_utils as env_utils

        migrate_environments(env_utils, read_anew=version < (0, 4))


def _apply_to_03() -> None:
    stub_mujoco_py()
    import robomimic.utils.file_utils as file_utils
    import robomimic.utils.obs_utils as obs_utils
    import robomimic.utils.train_utils as train_utils
    from robomimic.algo import RolloutPolicy
    from robomimic.utils.dataset import SequenceDataset

    accept_wrapped_environments()
    broadcast_normalization(obs_utils)
    normalize_once(SequenceDataset)
    keep_action_statistics(file_utils, train_utils, RolloutPolicy)
