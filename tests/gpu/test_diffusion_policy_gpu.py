"""Policies of diffusion_policy's kinds on a CUDA device: their networks are captured."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")
from diffusers import DDPMScheduler

import asd_policy.integrations.diffusion_policy as asd
from asd_policy.networks.attention import stacks_in, unasking
from reference.diffusion_policy_standin import OBSERVED, STEPS_SEEN, TransformerPolicy, UnetPolicy

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
KINDS = [
    (UnetPolicy, "global"), (UnetPolicy, "local"), (UnetPolicy, "fixed"),
    (TransformerPolicy, "cond"), (TransformerPolicy, "fixed"),
]  # fmt: skip


def make(kind, how):
    torch.manual_seed(0)
    scheduler = DDPMScheduler(20, beta_schedule="squaredcos_cap_v2")
    policy = kind(scheduler, how).eval().cuda()
    seen = torch.randn(3, STEPS_SEEN, OBSERVED, generator=torch.Generator().manual_seed(1)).cuda()
    return policy, *policy.inputs(seen)


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize(("kind", "how"), KINDS)
def test_their_networks_are_captured_and_draw_as_eager_ones_do(kind, how, copy, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # in their loop
    policy, known, conds = make(kind, how)
    drawn = []
    for engine in ("cuda_graph", "eager"):
        asd.accelerate(policy, engine=engine, window=8, copy=copy, verbose=False)
        generator = torch.Generator("cuda").manual_seed(2)
        drawn.append(policy.conditional_sample(*known, **conds, generator=generator))
        hook = policy.conditional_sample
        assert [s.engine.name for s in hook._samplers.values()] == [engine]
        assert asd.difference_to_its_loop(policy, *known, **conds) < 5e-4
        assert int(hook.stats.calls.max()) < 20
    torch.testing.assert_close(*drawn, rtol=0, atol=5e-3)


@pytest.mark.parametrize("how", ["cond", "fixed"])
def test_a_call_of_their_transformer_makes_the_host_wait_for_nothing(how):
    """As PyTorch itself finds; and it does where the mask is looked at (the control)."""
    model = make(TransformerPolicy, how)[0].model
    x = torch.randn(4, 8, model.into.in_features, device="cuda")
    cond = torch.randn(4, STEPS_SEEN, OBSERVED, device="cuda") if how == "cond" else None
    times = torch.arange(4, device="cuda")
    told = unasking(model, stacks_in(model))
    before = torch.cuda.get_sync_debug_mode()
    with torch.inference_mode():
        expected = model(x, times, cond)
        try:
            torch.cuda.set_sync_debug_mode("error")
            found = told(x, times, cond)
            with pytest.raises(RuntimeError, match="synchroniz"):
                model(x, times, cond)
        finally:
            torch.cuda.set_sync_debug_mode(before)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
