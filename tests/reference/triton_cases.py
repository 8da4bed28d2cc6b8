"""Triton's kernels beside their PyTorch form, round by round from the same state.

``python -m reference.triton_cases`` runs every case on the CPU and prints a JSON object: for each
case what went wrong, or null. Kernels run there in Triton's interpreter, which must be chosen
before triton is first imported, and which would get in the way of others in the same process.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import time
import traceback
from collections.abc import Callable

import torch
from torch import Tensor

from asd_policy import Schedule
from asd_policy.chains import Chains, Tables
from asd_policy.denoiser import Denoiser, Network
from asd_policy.drafts import DRAFTS, Form
from asd_policy.engine.kernels import make_kernels
from asd_policy.samplers.asd import AutospeculativeDecoding
from asd_policy.samplers.ddpm import sample_ddpm
from reference.chains import bulk_noise
from reference.mixture import Mixture


@dataclasses.dataclass(frozen=True)
class Case:
    """A chunk to run: K steps of B chains of D numbers, with a window of W."""

    draft: str = "secant"
    calls: int = 1
    num_steps: int = 7
    dim: int = 5
    window: int = 4
    batch: int = 2
    kind: str = "epsilon"
    clip: float | None = 1.0
    learn: bool = True
    static: bool = True
    bumpy: float = 0.3
    dtype: torch.dtype = torch.float64
    broken: float | None = None  # what the network says once, at step 3 of chain 1
    holes: float | None = None  # where the sine of a point is above it, the network says NaN
    rounds: int | None = None  # to stop after
    ddim: bool = False  # whose steps use the prediction itself
    rejoin: bool = False
    slope: float = 1.2  # the largest; drafts overflow where it is huge

    @property
    def name(self) -> str:
        """What differs from the default."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["dtype"] = str(self.dtype).removeprefix("torch.")
        usual = {"dtype": "float64"} | {
            f.name: f.default for f in dataclasses.fields(self) if f.name != "dtype"
        }
        return " ".join(f"{key}={v}" for key, v in values.items() if v != usual[key]) or "usual"

    def schedule(self) -> Schedule:
        trained = Schedule.ddpm(
            self.num_steps, prediction_type=self.kind, clip_sample=self.clip is not None,
            clip_range=self.clip or 1.0,
        )  # fmt: skip
        return trained.ddim(self.num_steps, 0.5) if self.ddim else trained


SHAPES = (
    {"num_steps": 10, "dim": 5, "window": 4, "batch": 2},
    {"num_steps": 9, "dim": 112, "window": 9, "batch": 1, "kind": "sample", "clip": 0.8},
    {"num_steps": 8, "dim": 16, "window": 9, "batch": 2, "kind": "v_prediction", "clip": None},
    {"num_steps": 6, "dim": 1, "window": 2, "batch": 1, "bumpy": 0.9},
    {"num_steps": 8, "dim": 33, "window": 5, "batch": 3, "kind": "sample", "learn": False},
)


def cases() -> list[Case]:
    """All of them: every form on every shape, half of them static, and a few large or broken."""
    found = [
        Case(draft, calls, static=bool((i + j) % 2), **SHAPES[(i + 2 * j) % len(SHAPES)])
        for i, (draft, calls) in enumerate(itertools.product(DRAFTS, (1, 2)))
        for j in range(2)
    ]
    found += [
        Case(
            num_steps=20, dim=12, window=4, batch=1, bumpy=0.9, rounds=11
        ),  # more pairs than are kept
        Case("slope", num_steps=140, dim=3, window=130, batch=1, bumpy=0.05, rounds=2),
        Case(num_steps=20, dim=1024, window=12, batch=1, bumpy=0.01, static=False, rounds=3),
        Case(num_steps=100, dim=112, window=32, batch=1, dtype=torch.float32, rounds=4),
        Case("memory", 2, dim=70, window=5, clip=None, batch=2, dtype=torch.float32),
        *(Case("slope", calls, window=1, batch=1) for calls in (1, 2)),
        *(Case(calls=c, broken=b, learn=False) for c in (1, 2) for b in (float("nan"), 1e400)),
        Case(clip=None, broken=-1e400, learn=False),
    ]
    found += [Case(rejoin=True, static=bool(i % 2), **shape) for i, shape in enumerate(SHAPES)]
    found += [
        Case(rejoin=True, num_steps=20, dim=12, window=4, batch=2, bumpy=0.9, rounds=13),
        Case(rejoin=True, num_steps=140, dim=3, window=70, batch=1, bumpy=0.05, rounds=4),
        Case(rejoin=True, num_steps=60, dim=112, window=16, dtype=torch.float32, rounds=6),
        Case(rejoin=True, window=1, batch=1),
        *(Case(rejoin=True, broken=b, learn=False) for b in (float("nan"), 1e400)),
    ]
    found += [
        Case(calls=calls, rejoin=rejoin, holes=holes, num_steps=20, dim=6, window=6, batch=1)
        for calls, rejoin in ((1, False), (2, False), (1, True))
        for holes in (0.9, 0.99)
    ]
    found += [
        Case(rejoin=rejoin, slope=slope, clip=None, learn=False)
        for rejoin in (False, True)
        for slope in (1e200, 1e308)
    ]
    assert len({case.name for case in found}) == len(found)
    return found


def network_of(case: Case, schedule: Schedule) -> Network:
    """A mixture's, uneven enough that drafts are rejected; ``cond`` is the chain's number."""
    mixture = Mixture(case.dim).network(schedule)

    def network(x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
        assert cond is not None
        out = mixture(x, timesteps.cpu(), cond) + case.bumpy * torch.sin(5 * x)
        if case.broken is not None:
            which = (timesteps == schedule.timesteps[3].to(x.device)) & (cond[:, 0] == 1)
            out[which, -1] = case.broken
        if case.holes is not None:
            out[torch.sin(50 * x[:, 0]) > case.holes] = torch.nan
        return out

    return network


def smooth(x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
    """A network that can be captured in a graph."""
    return torch.tanh(x + 0.1 * torch.sin(4 * x.roll(1, -1)) + 0.01 * timesteps.unsqueeze(1))


def run_of(
    case: Case, kernels: str, device: str, network: Network | None = None
) -> AutospeculativeDecoding:
    """A chunk of a case about to start, on noise that is always the same."""
    schedule = case.schedule()
    noise = bulk_noise(case.batch, case.num_steps, case.dim, seed=3)
    initial, steps, log_uniform = (
        t.to(device, case.dtype) for t in (noise.initial, noise.steps, noise.log_uniform)
    )
    cond = torch.arange(case.batch, device=device).unsqueeze(1)
    shape = (case.dim,)
    network = network or network_of(case, schedule)
    denoiser = Denoiser(network, schedule, shape, cond, initial)
    chains = Chains(schedule, case.batch, case.dim, case.window, initial, case.rejoin)
    slopes = torch.linspace(0.0, case.slope, case.num_steps, dtype=torch.float64)
    chains.load(initial, steps, log_uniform, slopes.to(initial))
    chains.reset()
    form = Form(case.draft, case.calls, case.learn, case.rejoin)
    return AutospeculativeDecoding(denoiser, chains, form, make_kernels(kernels))


def state(chains: Chains) -> dict[str, Tensor]:
    """Every tensor that a round may change."""
    fixed = ("slopes", "offset", "position")
    found = {k: v for k, v in vars(chains).items() if isinstance(v, Tensor) and k not in fixed}
    paths = {} if chains.paths is None else vars(chains.paths)
    return found | {f"paths.{k}": v for k, v in paths.items()}


def check_state(case: Case, fused: Chains, reference: Chains, label: str) -> None:
    tolerance = 1e-8 if case.dtype == torch.float64 else 2e-3
    expected = state(reference)
    for name, got in state(fused).items():
        torch.testing.assert_close(
            got, expected[name], rtol=tolerance, atol=tolerance, equal_nan=True,
            msg=lambda text, name=name: f"{name} after {label}: {text}",
        )  # fmt: skip


def check_chunk(case: Case, device: str) -> dict[str, int]:
    """Run a chunk with both; returns how many rejections and secant pairs it had."""
    reference, fused = run_of(case, "torch", device), run_of(case, "triton", device)
    addresses = {name: t.data_ptr() for name, t in state(fused.chains).items()}
    chains, rounds = reference.chains, 0
    while min(n := chains.n.tolist()) < case.num_steps and max(chains.bad.tolist()) < 0:
        if rounds == case.rounds:
            break
        known = None if case.static else n
        before = {name: t.clone() for name, t in state(chains).items()}
        for name, tensor in state(fused.chains).items():
            tensor.copy_(before[name])
        reference.round(known)
        fused.round(known)
        rounds += 1
        check_state(case, fused.chains, chains, f"round {rounds}")
        assert rounds <= case.num_steps
    assert addresses == {name: t.data_ptr() for name, t in state(fused.chains).items()}
    if case.broken is not None:
        assert chains.bad.tolist() == [-1, 3], chains.bad
    sound = max(chains.bad.tolist()) < 0 or case.broken is not None
    if case.static and case.rounds is None and sound:  # a finished chunk stays as it is
        check_finished(case, fused, reference)
    return {
        "rejections": int((chains.decided - chains.accepted).sum()),
        "pairs": int(chains.pushed.max()),
        "rounds": rounds,
    }


def check_finished(
    case: Case, fused: AutospeculativeDecoding, reference: AutospeculativeDecoding
) -> None:
    if case.broken is not None:  # only the first step at which it broke is kept
        for _ in range(4):
            fused.round(None)
        assert fused.chains.bad.tolist() == [-1, 3]
        return
    before = {name: t.clone() for name, t in state(fused.chains).items()}
    for run in (fused, reference):
        run.round(None)
    check_state(case, fused.chains, reference.chains, "a round too many")
    for name in ("x", "n", "last", "bad", "calls", "evaluations", "accepted", "decided", "learned"):
        assert torch.equal(getattr(fused.chains, name), before[name]), name


def check_sequential(case: Case, device: str) -> dict[str, int]:
    """The whole sequential chain from raw predictions, and a few steps too many."""
    schedule = case.schedule()
    run = run_of(dataclasses.replace(case, ddim=False), "torch", device)
    x, index = run.chains.x.clone(), torch.arange(case.batch, device=device)
    denoiser = Denoiser(run.denoiser.network, schedule, (case.dim,), run.denoiser._cond, x)
    n, bad = torch.zeros_like(index), torch.full_like(index, -1)
    noise = bulk_noise(case.batch, case.num_steps, case.dim, seed=3)
    tables, kernels = Tables(schedule, 1, x), make_kernels("triton")
    for _ in range(case.num_steps + 2):
        prediction = denoiser.predict(x, n, index)
        given = noise.steps.to(x)
        kernels.advance(x, prediction, given, n, bad, tables, denoiser)
    end = x.clone()
    kernels.advance(x, torch.full_like(x, torch.nan), given, n, bad, tables, denoiser)
    assert torch.equal(x.nan_to_num(), end.nan_to_num()), "a chain at its end stays"
    assert n.tolist() == [case.num_steps] * case.batch
    assert bad.tolist() == ([-1, -1] if case.broken is None else [-1, 3])[: case.batch]
    if case.broken is None:
        moved = type(noise)(*(t.to(x) for t in vars(noise).values()))
        expected, _ = sample_ddpm(denoiser, schedule, moved)
        tolerance = 1e-9 if case.dtype == torch.float64 else 1e-4
        torch.testing.assert_close(x, expected, rtol=tolerance, atol=tolerance)
    return {}


def sequential_cases() -> list[Case]:
    return [
        Case(),
        Case(kind="sample", dim=112, clip=0.5),
        Case(kind="v_prediction", dim=33, clip=None, batch=1),
        Case(ddim=True, clip=0.3),
        Case(dtype=torch.float32, dim=7),
        Case(broken=float("nan")),
        Case(broken=1e400, clip=None),
    ]


def checks() -> dict[str, tuple[Callable[[Case, str], dict[str, int]], Case]]:
    rounds = {f"asd {case.name}": (check_chunk, case) for case in cases()}
    return rounds | {
        f"sequential {case.name}": (check_sequential, case) for case in sequential_cases()
    }


def main() -> None:
    torch.set_num_threads(1)
    report: dict[str, object] = {}
    for name, (check, case) in checks().items():
        begun = time.perf_counter()
        try:
            report[name] = {"counts": check(case, "cpu"), "seconds": time.perf_counter() - begun}
        except Exception:
            report[name] = {"error": traceback.format_exc()}
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
