"""torchvision, which robomimic imports, beside a PyTorch that it was not built for."""

from __future__ import annotations

import importlib
import sys

from torch import library as operators

_KEPT: list[operators.Library] = []  # a definition lasts as long as its library


def import_torchvision() -> None:
    """Import it, although its compiled operators may be missing.

    A torchvision of the package index, built for CUDA, beside the CPU's PyTorch cannot load them,
    and fails to import since it describes two that are not there ("operator torchvision::nms does
    not exist"). robomimic uses none; so those are declared, without an implementation, and
    calling one still fails. Where torchvision is whole, or missing, nothing is done.

    Raises:
        RuntimeError: any other fault of torchvision's.
    """
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = operators.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
        importlib.import_module("torchvision")
