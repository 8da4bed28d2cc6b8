"""Transformers of PyTorch's, told that their mask need not be looked at."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asd_policy.errors import EngineError
from asd_policy.networks.attention import stacks_in, unasking
from reference.recorder import Capturing

WIDTH, TOKENS = 16, 5
SIZES: Any = {"nhead": 2, "dim_feedforward": 32, "batch_first": True}
CAUSAL = nn.Transformer.generate_square_subsequent_mask(TOKENS)
NEAR = (torch.ones(TOKENS, TOKENS).triu(2) + torch.ones(TOKENS, TOKENS).tril(-2)) * -1e9


class Whole(nn.Module):
    """A network with PyTorch's transformers at several depths."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"whole": nn.Transformer(WIDTH, 2, 1, 1, 32, batch_first=True)})
        layer = nn.TransformerEncoderLayer(WIDTH, **SIZES)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.register_buffer("mask", CAUSAL.clone())

    def forward(self, x: Tensor) -> Tensor:
        y = self.parts["whole"](x, x, src_mask=self.mask, tgt_mask=self.mask)
        out: Tensor = self.encoder(y, mask=self.mask)
        return out


def network() -> Whole:
    torch.manual_seed(0)
    return Whole().eval()


X = torch.randn(3, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
@pytest.mark.parametrize("mask", [CAUSAL, NEAR])
def test_the_same_is_computed_and_the_host_waits_for_nothing(mask: Tensor) -> None:
    net = network()
    net.mask.copy_(mask)
    names = stacks_in(net)
    assert names == ["parts.whole.encoder", "parts.whole.decoder", "encoder"]
    expected = net(X)
    with pytest.raises(EngineError, match="is_nonzero waits"), Capturing("a call"):
        net(X)
    with Capturing("a call"):
        found = unasking(net, names)(X)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    net.mask.zero_()
    assert not torch.allclose(net(X), expected, atol=1e-3)  # the mask matters


@torch.inference_mode()
def test_a_stack_alone_is_told_too() -> None:
    stack = network().encoder
    assert stacks_in(stack) == [""]
    with Capturing("a call"):
        found = unasking(stack, [""])(X, mask=CAUSAL)
    torch.testing.assert_close(found, stack(X, mask=CAUSAL), rtol=0, atol=1e-5)


def test_the_network_stays_as_it_is_and_is_seen_as_it_is_now() -> None:
    net = network()
    names, before = stacks_in(net), copy.deepcopy(net)
    view = unasking(net, names)
    assert {id(p) for p in view.parameters()} == {id(p) for p in net.parameters()}
    assert type(net.encoder) is nn.TransformerEncoder
    assert type(net) is type(view)
    assert net.state_dict().keys() == before.state_dict().keys()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.1)
    net.encoder = copy.deepcopy(before.encoder)
    torch.testing.assert_close(unasking(net, names)(X), net(X), rtol=0, atol=1e-5)
    net.encoder = nn.Identity()  # of another kind: it is called as it is
    net.forward = lambda x: net.encoder(x)
    assert torch.equal(unasking(net, names)(X), X)


def test_a_hint_that_is_given_is_kept() -> None:
    seen = []

    class Layer(nn.TransformerEncoderLayer):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            seen.append(kwargs["is_causal"])
            return super().forward(*args, **kwargs)

    stack = nn.TransformerEncoder(Layer(WIDTH, **SIZES), 1, enable_nested_tensor=False).eval()
    for hint in (None, True, False):
        unasking(stack, [""])(X, mask=CAUSAL, is_causal=hint)
    unasking(stack, [""])(X)
    assert seen == [False, True, False, False]
