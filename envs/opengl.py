"""What must happen before software OpenGL is loaded. Imports nothing that would load it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os


def load_triton_first() -> None:
    """Import Triton, where it is installed, before OpenGL is loaded.

    Software OpenGL (Mesa) and Triton each bring an LLVM. Loading Triton's second takes the process
    down, and PyTorch loads it on its own as soon as an optimizer is made or a network compiled.
    """
    if importlib.util.find_spec("triton") is not None:
        with contextlib.suppress(ImportError):
            importlib.import_module("triton")


def before_mujoco() -> None:
    """With MUJOCO_GL=osmesa, importing mujoco loads it."""
    if os.environ.get("MUJOCO_GL", "").strip().lower() == "osmesa":
        load_triton_first()
