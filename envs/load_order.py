"""Imported before MuJoCo, for its effect: with the variable MUJOCO_GL set, importing MuJoCo loads
OpenGL at once, and Triton must be there before it (see `opengl.load_triton_first`)."""

import os

from asd_policy.envs.opengl import load_triton_first

if os.environ.get("MUJOCO_GL"):
    load_triton_first()
