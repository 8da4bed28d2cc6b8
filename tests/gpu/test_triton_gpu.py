"""Triton's kernels equal their PyTorch form on a CUDA device, launched and captured in a graph."""

from __future__ import annotations

import pytest
import torch

from asd_policy.checkpoints import shipped
from asd_policy.engine.kernels import triton as triton_kernels
from asd_policy.networks.inference import InferenceUnet1D
from asd_policy.policy import load_checkpoint
from reference import follow_cases, triton_cases

CHECKS = triton_cases.checks()
REASON = "needs a CUDA device" if not torch.cuda.is_available() else triton_kernels.available()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.mark.parametrize("name", CHECKS)
def test_kernels_are_their_pytorch_form(name: str) -> None:
    check, case = CHECKS[name]
    check(case, "cuda")


@pytest.mark.parametrize("name", follow_cases.CASES)
def test_what_follows_a_product_is_its_pytorch_form(name: str) -> None:
    follow_cases.check(follow_cases.CASES[name], "cuda")


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp32", 1e-3), ("tf32", 0.01), ("bf16", 0.05)]
)
def test_a_trained_network_in_either_layers_is_itself(precision: str, tolerance: float) -> None:
    """As it was trained, in whole layers, fused and as products, for one row and for many."""
    checkpoint = load_checkpoint(shipped("lift"))
    network, timesteps = checkpoint.network.cuda(), checkpoint.schedule.timesteps.cuda()
    for rows in (1, 33):
        x = torch.randn(rows, *checkpoint.config.chunk_shape, device="cuda")
        cond = torch.randn(rows, checkpoint.config.condition_dim, device="cuda")
        steps = torch.arange(rows, device="cuda") * 3
        with torch.no_grad():
            expected = network(x, timesteps[steps], cond)
        for layers in ("whole", "fused", "products"):
            prepared = InferenceUnet1D(network, timesteps, precision, layers)
            film = prepared.timestep_film[steps] + prepared.condition(cond, rows)
            error = (prepared(x, film) - expected).norm() / expected.norm()
            assert error < tolerance, (layers, rows, float(error))


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("draft", triton_cases.DRAFTS)
def test_a_round_can_be_captured(draft: str, calls: int) -> None:
    """A graph of one round, replayed, takes a chunk to the end that launched rounds take it to."""
    case = triton_cases.Case(draft, calls, num_steps=30, dim=112, window=8, batch=5, learn=True)
    launched, captured = (
        triton_cases.run_of(case, "triton", "cuda", triton_cases.smooth) for _ in range(2)
    )
    start = {name: t.clone() for name, t in triton_cases.state(captured.chains).items()}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        captured.round(None)  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.round(None)
    for name, tensor in triton_cases.state(captured.chains).items():
        tensor.copy_(start[name])
    for _ in range(case.num_steps):
        launched.round(None)
        graph.replay()
    assert launched.chains.n.tolist() == [case.num_steps] * case.batch
    triton_cases.check_state(case, captured.chains, launched.chains, "the chunk")
