"""Tensors that the package makes lie where it says, whatever PyTorch's default device is."""

from __future__ import annotations

import ast
from pathlib import Path

import asd_policy

FACTORIES = {
    "arange", "as_tensor", "asarray", "empty", "eye", "full", "linspace", "logspace", "ones",
    "rand", "randint", "randn", "randperm", "scalar_tensor", "tensor", "zeros",
}  # fmt: skip
ROOT = Path(asd_policy.__file__).parent
BESIDE = [
    ROOT.parent / name for name in ("envs", "eval") if not (ROOT / name).is_dir()
]  # a checkout


def test_every_tensor_that_is_made_names_its_device() -> None:
    """So that `torch.set_default_device` cannot move it."""
    bare = []
    for path in sorted(path for folder in [ROOT, *BESIDE] for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _makes_a_tensor(node.func):
                named = {keyword.arg for keyword in node.keywords}  # None: **options
                generator = getattr(node.func, "attr", "") == "Generator"
                if not named & {"device", None} and not (generator and node.args):
                    bare.append(f"{path.relative_to(ROOT.parent)}:{node.lineno}")
    assert not bare, "\n".join(bare)


def _makes_a_tensor(function: ast.expr) -> bool:
    return (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.value.id == "torch"
        and function.attr in FACTORIES | {"Generator"}
    )
