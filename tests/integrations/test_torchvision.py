"""torchvision whose operators do not load is imported all the same; other faults are not hidden."""

import subprocess
import sys

import pytest

OPERATOR = """
from torch.library import register_fake
@register_fake("torchvision::nms")
def nms(*arguments): ...
@register_fake("torchvision::qnms")
def qnms(*arguments): ...
"""
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import asd_policy.integrations.diffusion_policy
import torch, torchvision
try:
    torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except NotImplementedError:
    print("imported, and the operator is not there")
"""


@pytest.mark.parametrize(
    ("source", "status", "said"),
    [
        (OPERATOR, 0, "imported, and the operator is not there"),
        ("raise RuntimeError('another fault')", 1, "another fault"),
    ],
)
def test_missing_operators(tmp_path, source, status, said) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(source)
    made = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert made.returncode == status, made.stderr
    assert said in made.stdout + made.stderr
