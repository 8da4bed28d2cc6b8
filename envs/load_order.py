"""Imported before MuJoCo, for its effect: what the simulator lacks here is said in one sentence,
and first; see also `opengl.before_mujoco`."""

from asd_policy.envs.opengl import before_mujoco
from asd_policy.envs.requirements import check_simulator

check_simulator()
before_mujoco()
