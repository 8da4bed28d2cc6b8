"""LeRobot's asynchronous policy server, with policies that are accelerated and have a history."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from lerobot.async_inference import policy_server as lerobot_server
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import get_policy_class
from lerobot.utils.import_utils import register_third_party_plugins
from torch import Tensor

from asd_policy.integrations.lerobot.accelerating import own_loops
from asd_policy.integrations.lerobot.configuration_asd_diffusion import NAME, AsdDiffusionConfig
from asd_policy.integrations.lerobot.folders import built, downloaded, renewed
from asd_policy.integrations.lerobot.history import TYPES, keep_history, remember
from asd_policy.integrations.lerobot.loading import prepared, replaced

_KEPT = 8  # received observations beyond a policy's history: one may be asked for late


def supported() -> list[str]:
    """Policy types that a client may ask for: LeRobot's server's, ours, and those of plugins."""
    register_third_party_plugins()
    plugins = [
        name
        for name, config in PreTrainedConfig.get_known_choices().items()
        if not config.__module__.startswith("lerobot.")
    ]
    return list(dict.fromkeys([*lerobot_server.SUPPORTED_POLICIES, *TYPES, *plugins]))


def _readable(request: Any, spare: str) -> Any:
    """A client's instructions, with a checkpoint in a form that this LeRobot reads."""
    wanted = pickle.loads(request.data)  # as LeRobot's server does: clients are trusted
    if getattr(wanted, "policy_type", None) not in TYPES:
        return request
    found = renewed(downloaded(wanted.pretrained_name_or_path), spare)
    wanted.pretrained_name_or_path = str(found)
    return type(request)(data=pickle.dumps(wanted))


def _class(name: str) -> Any:
    """A policy's class; of those that are accelerated, what loads them as ``folders`` does."""
    kind = get_policy_class(name)
    if name not in TYPES:
        return kind
    settings = AsdDiffusionConfig if name == NAME else PreTrainedConfig

    def from_pretrained(folder: str) -> Any:
        config = settings.from_pretrained(folder)
        return built(config, folder, lambda: kind.from_pretrained(folder, config=config))

    return SimpleNamespace(from_pretrained=from_pretrained)


class PolicyServer(lerobot_server.PolicyServer):
    """LeRobot's server. Diffusion policies are conditioned on consecutive observations: those that
    a client sent for the steps before, by their time steps. In place of one that it did not send
    stands the next that it did, as at the start of an episode; a client sends every one with
    ``--chunk_size_threshold=1``.

    Args:
        config: of LeRobot's server. options: keywords of ``accelerate``; without, LeRobot's own
            loop runs.
    """

    def __init__(self, config: Any, options: Mapping[str, Any]) -> None:
        super().__init__(config)
        self._options = options
        self._received: dict[int, Any] = {}

    def _reset_server(self) -> None:
        super()._reset_server()
        self._received = {}

    def SendPolicyInstructions(self, request: Any, context: Any) -> Any:
        with (
            tempfile.TemporaryDirectory() as spare,
            replaced(lerobot_server, "get_policy_class", _class),
            own_loops(bool(self._options)),
        ):
            answer = super().SendPolicyInstructions(_readable(request, spare), context)
        if self.policy is not None:
            prepared(self.policy, self._options)
            if self.policy_type in TYPES:
                keep_history(self.policy)
        return answer

    def _enqueue_observation(self, obs: Any) -> bool:
        if self.policy_type in TYPES:
            received = {**self._received, obs.get_timestep(): obs}
            last = sorted(received)[-(self.policy.config.n_obs_steps + _KEPT) :]
            self._received = {step: received[step] for step in last}  # threads see all or nothing
        queued: bool = super()._enqueue_observation(obs)
        return queued

    def _get_action_chunk(self, observation: dict[str, Tensor]) -> Tensor:
        if self.policy_type in TYPES:
            self.policy.reset()
            for earlier in self._before(self.last_processed_obs.get_timestep()):
                raw = lerobot_server.raw_observation_to_observation(
                    earlier.get_observation(), self.lerobot_features, self.policy_image_features
                )
                remember(self.policy, self.preprocessor(raw))
        chunk: Tensor = super()._get_action_chunk(observation)
        return chunk

    def _before(self, step: int) -> list[Any]:
        """What was received for the steps before this one, oldest first; a step of which nothing
        was received has the next one's, and none where that is the present step."""
        received, found = self._received, []
        for wanted in range(step - self.policy.config.n_obs_steps + 1, step):
            later = [number for number in received if wanted <= number < step]
            if later:
                found.append(received[min(later)])
        return found
