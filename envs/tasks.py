"""The table of simulated tasks: one row each, read by the world, the experts and the evaluator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import Any

from asd_policy.errors import CheckpointError, InputError, did_you_mean, plain

CONTROL_FREQUENCY_HZ = 20
# The controller of the published robomimic datasets. robosuite 1.5's own default differs in the
# frame of the commands: "base", which is rotated against the world for Transport's robots.
_ARM_CONTROLLER: dict[str, Any] = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "damping_ratio": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_ratio_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "input_type": "delta",
    "input_ref_frame": "world",
    "interpolation": None,
    "ramp_ratio": 0.2,
    "gripper": {"type": "GRIP"},
}


@dataclass(frozen=True)
class ObjectField:
    """One named piece of the `object` observation.

    robosuite 1.5 changed order and sign inside `object` against 1.4.1, on which the published
    robomimic data was made; composing it from named pieces keeps the published meaning.

    Attributes:
        name: robosuite 1.5's name of the observable.
        dim: its length.
        sign: factor that turns robosuite 1.5's value into the published one (+1 or -1).
    """

    name: str
    dim: int
    sign: float = 1.0


@dataclass(frozen=True)
class Task:
    """A row of the table.

    Attributes:
        name: key in `TASKS`.
        env_id: gymnasium id.
        robosuite_name: name that `robosuite.make` knows.
        horizon: control steps (20 Hz) before an episode is truncated.
        object_fields: pieces of `object`, in published order.
        robots: one robot model per arm.
        env_configuration: how robosuite places several robots, None for one arm.
        expert: "module:class" of the scripted expert, None where there is none.
        demonstration_limit: control steps, several times the usual, after which an attempt of the
            expert is given up.
        camera: rendered by `render_mode="rgb_array"`.
    """

    name: str
    env_id: str
    robosuite_name: str
    horizon: int
    object_fields: tuple[ObjectField, ...]
    robots: tuple[str, ...] = ("Panda",)
    env_configuration: str | None = None
    expert: str | None = None
    demonstration_limit: int = 150
    camera: str = "agentview"

    @property
    def observation_keys(self) -> Mapping[str, int]:
        """Observation keys in published order, each with its length."""
        keys = {"object": sum(f.dim for f in self.object_fields)}
        for arm in range(len(self.robots)):
            keys[f"robot{arm}_eef_pos"] = 3
            keys[f"robot{arm}_eef_quat"] = 4
            keys[f"robot{arm}_gripper_qpos"] = 2
        return MappingProxyType(keys)

    @property
    def height_columns(self) -> tuple[int, ...]:
        """Columns of `object` that hold the height of an object in the world."""
        return tuple(
            column + 2
            for field, column in self._fields_and_columns()
            if field.name.endswith("_pos") and "_to_" not in field.name
        )

    @property
    def quaternions(self) -> tuple[int, ...]:
        """First columns of the quaternions (x, y, z, w) in the concatenated observation."""
        fields = self._fields_and_columns()
        starts = [column for field, column in fields if field.name.endswith("_quat")]
        arms, after = range(len(self.robots)), self.observation_keys["object"]
        return (*starts, *(after + 9 * arm + 3 for arm in arms))

    def _fields_and_columns(self) -> list[tuple[ObjectField, int]]:
        """Pieces of `object`, each with its first column."""
        ends = accumulate(field.dim for field in self.object_fields)
        return [(f, end - f.dim) for f, end in zip(self.object_fields, ends, strict=True)]

    @property
    def action_dim(self) -> int:
        """Per arm: 3 position and 3 axis-angle deltas in the world frame, 1 gripper."""
        return 7 * len(self.robots)

    def check_action_dim(self, found: int, policy: object) -> None:
        """Raise a ValueError unless a policy's actions are of as many numbers."""
        if found != self.action_dim:
            raise InputError(
                f"task {self.name!r} takes actions of {self.action_dim} numbers, and the policy in "
                f"{policy} makes actions of {found}"
            )

    @property
    def gripper_components(self) -> tuple[int, ...]:
        """Which numbers of an action command a gripper. The others are motions: 0 holds still."""
        return tuple(range(6, self.action_dim, 7))


def _posed_objects(*names: str) -> tuple[ObjectField, ...]:
    """Pose in the world, then pose in the hand's frame, of each object in turn."""
    return tuple(
        ObjectField(field, dim)
        for name in names
        for field, dim in (
            (f"{name}_pos", 3),
            (f"{name}_quat", 4),
            (f"{name}_to_robot0_eef_pos", 3),
            (f"{name}_to_robot0_eef_quat", 4),
        )
    )


_ROWS = (
    Task(
        name="lift",
        env_id="asd_policy/Lift-v0",
        robosuite_name="Lift",
        horizon=400,
        object_fields=(
            ObjectField("cube_pos", 3),
            ObjectField("cube_quat", 4),
            ObjectField("gripper_to_cube_pos", 3, sign=-1.0),
        ),
        expert="asd_policy.envs.experts.lift:LiftExpert",
    ),
    Task(
        name="can",
        env_id="asd_policy/Can-v0",
        robosuite_name="PickPlaceCan",
        horizon=400,
        object_fields=_posed_objects("Can"),
        expert="asd_policy.envs.experts.can:CanExpert",
        demonstration_limit=300,
    ),
    Task(
        name="square",
        env_id="asd_policy/Square-v0",
        robosuite_name="NutAssemblySquare",
        horizon=400,
        object_fields=_posed_objects("SquareNut"),
        expert="asd_policy.envs.experts.square:SquareExpert",
        demonstration_limit=300,
    ),
    Task(
        name="tool_hang",
        env_id="asd_policy/ToolHang-v0",
        robosuite_name="ToolHang",
        horizon=700,
        object_fields=(
            *_posed_objects("base", "frame", "tool"),
            ObjectField("frame_is_assembled", 1),
            ObjectField("tool_on_frame", 1),
        ),
        expert="asd_policy.envs.experts.tool_hang:ToolHangExpert",
        demonstration_limit=700,
        camera="sideview",
    ),
    Task(
        name="transport",
        env_id="asd_policy/Transport-v0",
        robosuite_name="TwoArmTransport",
        horizon=700,
        robots=("Panda", "Panda"),
        env_configuration="opposed",
        object_fields=(
            ObjectField("payload_pos", 3),
            ObjectField("payload_quat", 4),
            ObjectField("trash_pos", 3),
            ObjectField("trash_quat", 4),
            ObjectField("lid_handle_pos", 3),
            ObjectField("lid_handle_quat", 4),
            ObjectField("target_bin_pos", 3),
            ObjectField("trash_bin_pos", 3),
            ObjectField("gripper0_to_payload", 3),
            ObjectField("gripper0_to_lid_handle", 3),
            ObjectField("gripper1_to_payload", 3),
            ObjectField("gripper1_to_trash", 3),
            ObjectField("payload_in_target_bin", 1),
            ObjectField("trash_in_trash_bin", 1),
        ),
        expert="asd_policy.envs.experts.transport:TransportExpert",
        demonstration_limit=600,
    ),
)

TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in _ROWS})


def get_task(name: str) -> Task:
    """The row called `name`: as in `TASKS`, as robosuite or gymnasium call it ("NutAssemblySquare",
    "asd_policy/Square-v0"), in capitals or not, with hyphens or underscores or neither.

    Raises:
        ValueError: no such task; the message lists those there are.
    """
    task = _BY_SPELLING.get(plain(name.rpartition(":")[2])) if isinstance(name, str) else None
    if task is None:
        near = did_you_mean(name, (*TASKS, *(task.robosuite_name for task in _ROWS)))
        raise InputError(f"unknown task {name!r}; expected one of: {', '.join(TASKS)}{near}")
    return task


_BY_SPELLING = {
    plain(spelling): task
    for task in _ROWS
    for spelling in (
        task.name,
        task.robosuite_name,
        task.env_id,
        task.env_id.rpartition("/")[2],
    )
}


def agreed_task(asked: str | None, own: str | None, checkpoint: object) -> str | None:
    """The name of the task that was asked for, or else of the `checkpoint`'s `own`, if it says one
    (as it says it, where that is not among `TASKS`).

    Raises:
        ValueError: an unknown task was asked for, which is not the checkpoint's.
        CheckpointError: another was asked for than the checkpoint's.
    """
    known = own if own is None else _BY_SPELLING.get(plain(str(own)))
    trained = known.name if isinstance(known, Task) else own
    if asked is None or asked == trained:
        return trained
    wanted = get_task(asked).name
    if trained not in (None, wanted):
        raise CheckpointError(
            f"--task {asked}: the checkpoint {checkpoint} was trained for {trained}; leave the "
            "option out"
        )
    return wanted


def environment_options(task: Task) -> dict[str, Any]:
    """Keyword arguments of `robosuite.make`: low-dimensional, 20 Hz, no OpenGL, no own horizon.

    `lite_physics` skips one of two identical forward passes in each of the 25 simulation steps;
    trajectories are the same, bitwise, and a third more of them come in a second.
    """
    options: dict[str, Any] = {
        "robots": list(task.robots),
        "controller_configs": [
            {"type": "BASIC", "body_parts": {"right": _ARM_CONTROLLER}} for _ in task.robots
        ],
        "has_renderer": False,
        "has_offscreen_renderer": False,
        "use_camera_obs": False,
        "use_object_obs": True,
        "reward_shaping": False,
        "control_freq": CONTROL_FREQUENCY_HZ,
        "lite_physics": True,
        "ignore_done": True,
    }
    if task.env_configuration is not None:
        options["env_configuration"] = task.env_configuration
    return options
