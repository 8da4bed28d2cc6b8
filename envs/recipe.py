"""What decides the attempts of a collection, what a store says of it, and how two differ."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from asd_policy.data.replay import OWN_FORMAT
from asd_policy.envs import episodes as _episodes
from asd_policy.envs.simulator import environment_arguments
from asd_policy.envs.tasks import get_task
from asd_policy.errors import DatasetError, InputError

# What a store says of itself besides its settings: what was asked of it, and what came of that.
COUNTS = ("episodes", "attempts", "dropped", "success_rate", "command")


@dataclass(frozen=True)
class Recipe:
    """All that decides what an attempt holds, but its number.

    Attributes:
        task: name of the task; it must have an expert.
        noise: standard deviation of the noise on the executed actions, in action units.
        seed: of the whole collection.
        interrupt_every: steps of the expert between two interruptions, in the mean; 0 for none.
        learner: SHA-256 of the policy that drives in half of the interruptions, if one does.
    """

    task: str = "lift"
    noise: float = 0.1
    seed: int = 0
    interrupt_every: int = 0
    learner: str | None = None

    def __post_init__(self) -> None:
        _episodes.load_expert(get_task(self.task))
        if not 0.0 <= self.noise <= 1.0:
            raise InputError(f"expected noise between 0 and 1 (action units), got {self.noise}")
        if self.interrupt_every < 0:
            raise InputError(
                f"expected 0 or more steps between interruptions, got {self.interrupt_every}"
            )
        if self.learner is not None and self.interrupt_every == 0:
            raise InputError(
                "a learner drives when the expert is interrupted: it needs --interrupt-every STEPS"
            )
        if self.seed < 0:
            raise InputError(f"expected a seed of 0 or more, got {self.seed}")

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> Recipe:
        """The recipe that a store, or an unfinished collection, names.

        Raises:
            KeyError, TypeError, ValueError: it names none.
        """
        interruptions = attributes.get("interruptions", {})
        return cls(
            attributes["task"],
            attributes["noise"]["std"],
            attributes["seed"],
            interruptions.get("every", 0),
            interruptions.get("learner"),
        )


def settings(recipe: Recipe) -> dict[str, Any]:
    """What a store says of how it was made, but for its counts. Nothing that differs between two
    runs of the same recipe on the same versions."""
    task = get_task(recipe.task)
    packages = ("asd-policy", "robosuite", "mujoco", "numpy", "gymnasium")
    return {
        "format": OWN_FORMAT,
        "task": task.name,
        "env_id": task.env_id,
        "env_args": environment_arguments(task),
        "observation_keys": dict(task.observation_keys),
        "expert": task.expert,
        "seed": recipe.seed,
        "noise": {
            "std": recipe.noise,
            "kind": "first-order autoregressive, on executed actions, not on the gripper",
            "correlation": _episodes.NOISE_CORRELATION,
        },
        "interruptions": {
            "every": recipe.interrupt_every,
            "kind": "a push of the arm in a random direction, or the learner's turn, 1 to 1",
            "push_steps": list(_episodes.PUSH_STEPS),
            "push_strength": list(_episodes.PUSH_STRENGTH),
            "push_lets_go": _episodes.PUSH_LETS_GO,
            "learner_steps": list(_episodes.LEARNER_STEPS),
            "learner": recipe.learner,
        },
        "steps_after_success": _episodes.STEPS_AFTER_SUCCESS,
        "max_steps": task.demonstration_limit,
        "action": "the expert's own at the visited states; what was executed is executed_action",
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def check_same_recipe(name: str, found: Recipe, asked: Recipe) -> None:
    """Raise DatasetError, naming each option that differs, unless `asked` is what made `name`."""
    there, wanted = asdict(found), asdict(asked)
    differences = [
        f"--{key.replace('_', '-')} is {_shown(there[key])} there, {_shown(wanted[key])} here"
        for key in wanted
        if wanted[key] != there[key]
    ]
    if differences:
        raise DatasetError(
            f"{name} was made with another recipe: {'; '.join(differences)}. Leave what differs "
            "out to take it from there, or choose another --out"
        )


def check_same_settings(name: str, found: Mapping[str, Any], asked: Recipe) -> None:
    """Raise DatasetError, naming each difference, unless attempts made here and now would be as
    those that `name` holds."""
    there, here = _leaves(found), _leaves(json.loads(json.dumps(settings(asked))))
    differences = [
        f"{key} is {_shown(there.get(key))} there, {_shown(here.get(key))} here"
        for key in {**here, **there}
        if key not in COUNTS and there.get(key) != here.get(key)
    ]
    if differences:
        raise DatasetError(
            f"{name} cannot be gone on with, since new attempts would differ: "
            f"{'; '.join(differences)}. Choose another --out"
        )


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        leaves |= _leaves(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return leaves


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
