"""Compiles the Triton kernels to machine code for CUDA devices, with none at hand.

``python -m reference.triton_compiles`` prints a JSON object: for each kernel and size "compiled"
or what the compiler said, or why there is nothing to say.
"""

from __future__ import annotations

import json
import traceback
from typing import Any

import torch

from asd_policy.chains import PAIRS, RIDGE
from asd_policy.coupling import EQUAL
from asd_policy.engine.kernels import triton as triton_kernels

COUNTS = ("n_ptr", "last_ptr", "bad_ptr", "pushed_ptr", "calls_ptr", "evaluations_ptr",
          "accepted_ptr", "decided_ptr", "end_ptr", "steps_ptr")  # fmt: skip
TYPES = {"fresh_ptr": "*u8", "learned_ptr": "*fp64", **dict.fromkeys(COUNTS, "*i64")}
TYPES |= {"met_ptr": "*u8", "eps": "fp32"}
BF16 = dict.fromkeys(("h_ptr", "out_ptr", "weight_ptr", "bias_ptr", "residual_ptr"), "*bf16")
CAPABILITIES = (80, 90)
WINDOW = 32


def forms(dim: int) -> dict[str, tuple[str, dict[str, Any], int]]:
    """name → kernel, constants and warps, for float32 chunks of ``dim`` numbers."""
    like, block = torch.empty(0), triton_kernels._power_of_two(dim)
    size = {"D": dim, "BLOCK": block, "CLIP": 1.0}
    found: dict[str, tuple[str, dict[str, Any], int]] = {}
    for draft in ("secant", "frozen"):
        correct = draft == "secant"
        given = {"FROZEN": draft == "frozen", "CORRECT": correct, "SECANT": correct}
        constants = {**size, **given, "PAIRS": PAIRS, "RIDGE": RIDGE}
        warps = triton_kernels._row_warps(block, like)
        found[f"propose {draft} {dim}"] = "propose_kernel", constants, warps
    for ahead, couple in ((0, True), (1, True), (0, False)):
        tile = triton_kernels._tile(block, WINDOW if couple else 1, like)
        given = {"TILE": tile, "AHEAD": ahead, "COUPLE": couple, "SECANTS": True, "LEARN": True}
        constants = {**size, **given, "PAIRS": PAIRS, "EQUAL": EQUAL}
        warps = triton_kernels._tile_warps(block * tile, like)
        found[f"verify {ahead} {couple} {dim}"] = "verify_kernel", constants, warps
    warps = triton_kernels._row_warps(block, like)
    walk = {**size, "PAIRS": PAIRS, "RIDGE": RIDGE, "EQUAL": EQUAL, "LEAST": 2.0**-23}
    found[f"secant walk {dim}"] = "walk_kernel", walk, warps
    tile = triton_kernels._tile(block, WINDOW, like)
    settle = {**size, "TILE": tile, "SECANTS": True, "LEARN": True, "PAIRS": PAIRS, "EQUAL": EQUAL}
    tile_warps = triton_kernels._tile_warps(block * tile, like)
    found[f"secant settle {dim}"] = "settle_kernel", settle, tile_warps
    found[f"advance {dim}"] = "advance_kernel", {**size, "CLIP": None}, warps
    return found


def follow_forms() -> dict[str, tuple[dict[str, Any], dict[str, str]]]:
    """name → constants and types of the kernel between two products of a network."""
    found: dict[str, tuple[dict[str, Any], dict[str, str]]] = {}
    power_of_two = triton_kernels._power_of_two
    for length, channels in ((16, 48), (10, 256), (4, 1024)):
        group = channels // 8
        sizes = {"T": length, "C": channels, "G": group, "TAPS": 5, "NORM": True}
        sizes |= {"BLOCK_T": power_of_two(length), "BLOCK_G": power_of_two(group)}
        for name, types in (("fp32", {}), ("bf16", BF16)):
            for film in (True, False):
                constants = {**sizes, "FILM": film, "RESIDUAL": not film}
                found[f"follow {length} {channels} {film} {name}"] = constants, types
    return found


def compile_form(
    kernel: Any, constants: dict[str, Any], warps: int, types: dict[str, str], capability: int
) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {}
    for parameter in kernel.params:
        name, is_tensor = parameter.name, parameter.name.endswith("_ptr")
        kind = types.get(name, "*fp32" if is_tensor else "i32")
        signature[name] = "constexpr" if parameter.is_constexpr else kind
    source = ASTSource(kernel, signature, constexprs=constants)
    target = GPUTarget("cuda", capability, 32)
    assert triton.compile(source, target=target, options={"num_warps": warps}).asm["cubin"]


def main() -> None:
    import triton

    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 3):
        print(json.dumps({"skipped": f"triton {triton.__version__} describes sources otherwise"}))
        return
    from asd_policy.networks.follow_kernel import follow_kernel

    sources, report = [triton_kernels._source(n) for n in ("triton_source", "triton_rejoin")], {}
    small, large = forms(112), forms(1024)
    chosen = {
        name: (getattr(source, kernel), constants, warps, TYPES)
        for name, (kernel, constants, warps) in (small | large).items()
        for source in sources
        if hasattr(source, kernel) and (name in small or "secant" in name)
    } | {
        name: (follow_kernel, constants, 4, TYPES | types)
        for name, (constants, types) in follow_forms().items()
    }
    for name, form in chosen.items():
        for capability in CAPABILITIES if name in small else CAPABILITIES[:1]:
            try:
                compile_form(*form, capability)
                report[f"{name} sm_{capability}"] = "compiled"
            except Exception:
                report[f"{name} sm_{capability}"] = traceback.format_exc()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
