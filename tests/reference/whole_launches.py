"""The launches of a U-Net in whole layers, listed without a device; and compiled without one.

``python -m reference.whole_launches`` compiles, for devices of compute capability 8.0 and 9.0, what
networks of several sizes launch, and prints a JSON object: for each kernel the bytes of shared
memory, or what the compiler said. With ``pdl``, one that waits for the launch before.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from asd_policy.networks import ConditionalUnet1D, whole
from asd_policy.networks.inference import Trunk
from asd_policy.networks.tiling import Card

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int32: "i32"}
A100 = Card(108, 166912, (8, 0))
H100 = Card()


@dataclass(frozen=True)
class Launch:
    """One launch: its grid, the kernel's positional arguments, its constants and options."""

    grid: tuple[int, int, int]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]

    @property
    def options(self) -> dict[str, Any]:
        return {k: v for k, v in self.constants.items() if k.startswith(("num_", "launch_"))}


class _Recorder:
    """Stands in for the kernel."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.layer_kernel = self

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        def record(*arguments: Any, **constants: Any) -> None:
            self.launches.append(Launch(grid, arguments, constants))

        return record


@contextmanager
def _recorded(card: Card) -> Any:
    recorder, kept = _Recorder(), (whole.source, whole.card_of)
    whole.source, whole.card_of = (lambda: recorder), (lambda device: card)
    try:
        yield recorder
    finally:
        whole.source, whole.card_of = kept


def launches(
    network: ConditionalUnet1D, rows: int, length: int, precision: str, card: Card = H100
) -> list[Launch]:
    """What a call on so many rows launches; the network is on the meta device."""
    trunk = Trunk(network, whole.Whole(precision))
    if precision == "bf16":
        trunk.bfloat16()
    x = torch.empty(rows, length, network.input_dim, device="meta")
    film = torch.empty(rows, 2 * sum(trunk.sizes) // 2, device="meta")
    with _recorded(card) as recorder, torch.no_grad():
        trunk(x, film)
    return recorder.launches


def unet(down_dims: Sequence[int], input_dim: int = 7, **options: Any) -> ConditionalUnet1D:
    with torch.device("meta"):
        return ConditionalUnet1D(input_dim, 46, down_dims=down_dims, **options)


def compiled(launch: Launch, capability: int) -> Any:
    """The kernel of a launch in machine code."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = _kernel()
    names = [p.name for p in kernel.params]
    given = dict(zip(names, launch.arguments, strict=False))
    constants = {n: launch.constants[n] for n in names if n in launch.constants}
    signature, aligned = {}, {}
    for place, (name, parameter) in enumerate(zip(names, kernel.params, strict=True)):
        value = given.get(name)
        if name in constants:
            signature[name] = "constexpr"
        elif isinstance(value, torch.Tensor):
            signature[name] = f"*{TYPES[value.dtype]}"
            aligned[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
            if not parameter.do_not_specialize and isinstance(value, int) and value % 16 == 0:
                aligned[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options=launch.options)


def _kernel() -> Any:
    from asd_policy.networks.layer_kernel import layer_kernel

    return layer_kernel


def form(launch: Launch) -> str:
    """What its machine code depends on."""
    types = "".join(
        TYPES[a.dtype][0] if isinstance(a, torch.Tensor) else str(int(not a % 16))
        for a in launch.arguments
    )
    return " ".join(str(v) for v in launch.constants.values()) + " " + types


def kind(launch: Launch) -> tuple[Any, ...]:
    """What decides which parts of the kernel there are."""
    names = ("PHASES", "MORE", "NORM", "FILM", "SKIP", "SPLIT", "CLEAR", "EXACT")
    return tuple(launch.constants[name] for name in names)


def chosen() -> dict[str, tuple[Launch, Card]]:
    """One launch of each kind, and all of a large network's last level."""
    large, odd = unet((256, 512, 1024)), unet((33, 66), n_groups=3, kernel_size=3)
    found: dict[str, tuple[Launch, Card]] = {}
    seen = set()
    for network, length, precision, rows, card in (
        (large, 16, "bf16", 32, H100), (large, 16, "tf32", 1, A100), (odd, 10, "fp32", 3, A100),
    ):  # fmt: skip
        for launch in launches(network, rows, length, precision, card):
            mark = (kind(launch), precision)
            if mark not in seen:
                seen.add(mark)
                found[f"{card.capability} {precision} {form(launch)}"] = launch, card
    return found


def main() -> None:
    report: dict[str, Any] = {}
    whole.PDL = "pdl" in sys.argv
    for name, (launch, card) in chosen().items():
        if whole.PDL and (card != H100 or report):
            continue
        try:
            kernel = compiled(launch, 10 * card.capability[0] + card.capability[1])
            waits = "griddepcontrol.wait" in kernel.asm["ptx"]
            report[name] = {"shared": kernel.metadata.shared, "limit": card.shared_bytes}
            report[name] |= {"waits": waits}
        except Exception:
            report[name] = {"error": traceback.format_exc()}
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
