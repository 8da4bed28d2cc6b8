"""Triton's kernels equal their PyTorch form, in Triton's interpreter; and they compile for a GPU.

The interpreter must be chosen before triton is imported and would change triton for every other
test, so each half runs in a process of its own.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from asd_policy.engine.kernels import triton as triton_kernels
from reference import follow_cases, triton_cases
from reference.modules import run_module

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    cache = tmp_path_factory.mktemp("triton")
    return run_module("reference.triton_cases", cache=cache, TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.parametrize("name", triton_cases.checks())
def test_kernels_are_their_pytorch_form(name: str, report: dict[str, Any]) -> None:
    assert "error" not in report[name], report[name]["error"]


@needs_triton
def test_the_cases_reach_every_branch(report: dict[str, Any]) -> None:
    """So that the comparison covers reflection, and secants that replace older ones."""
    counts = [entry["counts"] for entry in report.values() if entry.get("counts")]
    assert sum(count["rejections"] for count in counts) > 100
    assert max(count["pairs"] for count in counts) > 7
    assert sum(count["rounds"] for count in counts) > 100


@pytest.fixture(scope="module")
def follow_report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    cache = tmp_path_factory.mktemp("triton")
    return run_module("reference.follow_cases", cache=cache, TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.parametrize("name", follow_cases.CASES)
def test_what_follows_a_product_is_its_pytorch_form(
    name: str, follow_report: dict[str, str]
) -> None:
    assert not follow_report[name], follow_report[name]


@needs_triton
def test_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    """The interpreter accepts what the compiler does not. No device is needed."""
    compiled = run_module("reference.triton_compiles", cache=tmp_path)
    if "skipped" in compiled:
        pytest.skip(compiled["skipped"])
    assert compiled
    assert set(compiled.values()) == {"compiled"}, compiled


def test_reasons_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert triton_kernels.available() == "triton needs a CUDA device, and there is none"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton_kernels.available() is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert triton_kernels.available() == "triton is not installed"


def test_the_package_does_not_import_triton() -> None:
    code = "import sys, asd_policy.engine.kernels.triton; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 2, dtype=torch.float16), "float32 or float64 chains; got torch.float16"),
        (torch.zeros(1, 2), "chains on a CUDA device; got cpu"),
    ],
)
def test_chains_it_cannot_take(
    x: torch.Tensor, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=message):
        triton_kernels._check(x)
