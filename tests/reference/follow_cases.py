"""Checks that the kernel between two products is its PyTorch form.

``TRITON_INTERPRET=1 python -m reference.follow_cases`` prints a JSON object: the error by case.
"""

from __future__ import annotations

import json
import traceback
from dataclasses import dataclass

import torch
from torch import nn

from asd_policy.networks import fused

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 0.02}


@dataclass(frozen=True)
class Case:
    """Sizes, and what follows the product."""

    length: int
    channels: int
    groups: int
    taps: int
    norm: bool = True
    film: bool = False
    residual: str = "none"
    dtype: torch.dtype = torch.float32


CASES = {
    f"{number}": case
    for number, case in enumerate(
        [
            Case(16, 48, 8, 5),
            Case(16, 48, 8, 5, film=True),
            Case(16, 48, 8, 5, residual="rows"),
            Case(16, 48, 8, 5, residual="middle"),
            Case(8, 32, 4, 3, film=True, residual="middle"),
            Case(10, 24, 4, 7, film=True, residual="rows"),  # no powers of two
            Case(3, 10, 1, 3, residual="middle"),
            Case(4, 64, 8, 1),
            Case(2, 16, 2, 7),  # windows that reach past both ends
            Case(1, 16, 2, 5, norm=False),
            Case(16, 7, 1, 5, norm=False),
            Case(8, 48, 8, 5, norm=False),
            Case(16, 48, 8, 5, film=True, dtype=torch.float64),
            Case(16, 48, 8, 5, film=True, residual="middle", dtype=torch.bfloat16),
        ]
    )
}


def check(case: Case, device: str) -> None:
    """Raises AssertionError where the two differ."""
    torch.manual_seed(0)
    batch, wide = 3, torch.promote_types(case.dtype, torch.float32)
    shape = batch, case.length, case.channels
    h = (2 * torch.randn(shape, device=device) + 1).to(case.dtype)
    norm = nn.GroupNorm(case.groups, case.channels, device=device, dtype=case.dtype)
    norm.requires_grad_(False)
    for parameter in norm.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.3)
    parts = torch.randn(batch, 2 * case.channels + 3, device=device, dtype=wide)
    scale, shift = parts[:, 3:].split(case.channels, dim=1)
    windows = torch.randn(*shape[:2], case.taps, case.channels, device=device).to(case.dtype)
    residual = {"none": None, "rows": h.flip(0), "middle": windows[:, :, case.taps // 2]}
    given = (
        h, case.taps, norm if case.norm else None, (scale, shift) if case.film else None,
        residual[case.residual],
    )  # fmt: skip
    found, expected = fused.launch(*given), fused.follow_in_torch(*given)
    tolerance = TOLERANCE[case.dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def main() -> None:
    report = {}
    for name, case in CASES.items():
        try:
            check(case, "cpu")
            report[name] = ""
        except Exception:
            report[name] = traceback.format_exc()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
