"""Imported before MuJoCo, for its effect: see `opengl.before_mujoco`."""

from asd_policy.envs.opengl import before_mujoco

before_mujoco()
