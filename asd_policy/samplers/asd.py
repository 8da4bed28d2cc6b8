"""Autospeculative decoding: the exact DDPM chain in far fewer sequential network calls.

Each round guesses the next W steps, evaluates the network on all of them in one batch, and couples
step by step until the first rejection, whose outcome is still an exact sample (Hu, Das, Sadigh &
Anari, ICML 2025, arXiv 2505.03983). With ``calls_per_round=2`` the current point is evaluated
first, as in the paper; with 1 it is only the first row of the batch, so that a round costs one
call and the calls never exceed K.

``tests/reference/slow_asd.py`` is the same algorithm on one page, for one chain, a step at a time;
tests hold the two equal.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from asd_policy.chains import PAIRS, Chains
from asd_policy.coupling import accepts, reflect
from asd_policy.denoiser import Denoiser
from asd_policy.drafts import Form
from asd_policy.samplers.kernels import Kernels
from asd_policy.samplers.result import Stats

Lap = Callable[[str], None]


def observe(
    chains: Chains,
    denoiser: Denoiser,
    points: Tensor,
    prediction: Tensor,
    form: Form,
    ahead: int = 0,
) -> None:
    """Remember what the network said at points (B, W, D) of the steps from n + ``ahead`` on.

    Where step n was evaluated before, at the guess that a rejection has since replaced, the
    difference becomes a secant pair.

    Args:
        prediction: (B, W, D), the network's; unused where not :func:`wanted`.
    """
    width = points.shape[1]
    steps, use = chains.steps(width, ahead), wanted(chains, width, ahead)
    rows = chains.rows(steps)
    before, origin = (chains.take(t, rows, width) for t in (chains.value, chains.point))
    x0 = denoiser.x0(points, prediction, steps)
    x0 = torch.where(use.unsqueeze(2), x0, before)
    bad = (use & ~x0.isfinite().all(-1)).long()
    first = torch.where(bad.any(1), chains.n + ahead + bad.argmax(1), -1)
    chains.bad.copy_(torch.where(chains.bad < 0, first, chains.bad))
    displacement, change = points - origin, x0 - before
    known = (steps <= chains.last.unsqueeze(1)) & use
    if form.learn:
        for total, other in ((chains.cross, change), (chains.square, displacement)):
            sums = torch.where(known, (displacement * other).sum(-1), 0.0)
            sums = torch.where(use, sums, chains.take(total, rows, width))
            total.view(-1).index_copy_(0, rows, sums.view(-1))
    if form.secants and not ahead:
        _add_secant(chains, displacement[:, 0], change[:, 0], known[:, 0])
    for memory, values in ((chains.value, x0), (chains.point, points)):
        memory.flatten(0, 1).index_copy_(0, rows, values.reshape(len(rows), -1))
    chains.last.copy_(torch.maximum(chains.last, steps[:, -1].clamp(max=chains.num_steps - 1)))
    chains.calls.add_(use.any(1))
    chains.evaluations.add_(use.sum(1))


def wanted(chains: Chains, width: int, ahead: int) -> Tensor:
    """(B, W) which of the steps from n + ``ahead`` on are still to be evaluated."""
    real = chains.steps(width, ahead) < chains.num_steps
    return real if ahead else real & ~chains.fresh.unsqueeze(1)


def _add_secant(chains: Chains, displacement: Tensor, change: Tensor, usable: Tensor) -> None:
    """Put a pair (B, D), (B, D) in place of the oldest, in the chains where it is usable (B,)."""
    slope = chains.slopes[chains.n].unsqueeze(1)
    residual = torch.addcmul(change, slope, displacement, value=-1)
    length = displacement.norm(dim=1, keepdim=True)
    scale = torch.where(length > 0, 1 / length, 0.0)
    slot = (chains.pushed % PAIRS).view(-1, 1, 1).expand(-1, 1, chains.dim)
    for kept, new in ((chains.displacement, displacement), (chains.residual, residual)):
        old = kept.gather(1, slot).squeeze(1)
        new = torch.where(usable.unsqueeze(1), new * scale, old)
        kept.scatter_(1, slot, new.unsqueeze(1))
    chains.pushed.add_(usable)


def couple(chains: Chains, points: Tensor, drafts: Tensor, form: Form) -> None:
    """Couple every position of the window, stop at the first rejection, move on.

    Targets are the memory of the window's steps, which :func:`observe` has just filled.

    Args:
        points: (B, W+1, D). drafts: (B, W, D). With two calls a round, the window's end was
            evaluated too.
    """
    size, width = chains.num_steps, drafts.shape[1]
    steps = chains.steps(width)
    rows, left = chains.rows(steps), (size - chains.n).clamp(max=width)
    noise, targets = (chains.take(t, rows, width) for t in (chains.noise, chains.value))
    scale = chains.tables.delta[steps].unsqueeze(2)
    # Absorbing steps and the last, which has no draft to decide on, have scale 0 and stand.
    delta = torch.where(scale > 0, (drafts - targets) * scale, 0.0)
    stands = accepts(noise, delta, chains.take(chains.log_uniform, rows, width))
    position = chains.position[:width]
    length = torch.where(stands, width, position).amin(1)
    stop = torch.minimum(length, left - 1).clamp_(min=0)
    rejected = length < left
    _move(chains, (points, targets, noise, delta), stop, rejected)
    decided = (position <= stop.unsqueeze(1)) & (steps < size - 1)
    accepted = decided & (position != torch.where(rejected, stop, -1).unsqueeze(1))
    for total, which in ((chains.decided, decided), (chains.accepted, accepted)):
        total.view(-1).index_add_(0, rows, which.view(-1).long())
    if form.learn:
        for i, sums in enumerate((chains.cross, chains.square)):
            used = (chains.take(sums, rows, width) * decided).double()
            chains.learned[i].index_add_(0, steps.view(-1), used.view(-1))
    chains.fresh.copy_(~rejected & (chains.n + width < size) & (form.ahead > 0))
    chains.n.copy_((chains.n + stop + 1).clamp(max=size))


def verify(
    chains: Chains,
    denoiser: Denoiser,
    points: Tensor,
    drafts: Tensor,
    prediction: Tensor,
    form: Form,
) -> None:
    """What follows a round's network call on its batch, the points from ``form.ahead`` on.

    :func:`observe`, then :func:`couple`.
    """
    later = points[:, form.ahead : form.ahead + drafts.shape[1]]
    observe(chains, denoiser, later, prediction, form, form.ahead)
    couple(chains, points, drafts, form)


def _move(
    chains: Chains, found: tuple[Tensor, Tensor, Tensor, Tensor], stop: Tensor, rejected: Tensor
) -> None:
    """New current points, from the last position that was reached.

    As a sample of the target, a·x̂0 + b·x + σ·ξ': after a rejection ξ' is ξ reflected; after an
    accept ξ' = ξ + δ, which makes it the proposal. At the last step δ is zero.
    """
    index = stop.view(-1, 1, 1).expand(-1, 1, chains.dim)
    origin, target, noise, delta = (t.gather(1, index).squeeze(1) for t in found)
    noise = torch.where(rejected.unsqueeze(1), reflect(noise, delta), noise + delta)
    at = chains.n + stop
    a, b, sigma = (
        t[at].unsqueeze(1) for t in (chains.tables.a, chains.tables.b, chains.tables.sigma)
    )
    chains.x.copy_(a * target + b * origin + sigma * noise)


class AutospeculativeDecoding:
    """ASD as equal rounds on chains whose shapes never change: what an engine runs.

    Args:
        denoiser: of the chains. chains: their state. form: drafts and calls a round.
        kernels: what does the arithmetic.
    """

    def __init__(self, denoiser: Denoiser, chains: Chains, form: Form, kernels: Kernels) -> None:
        self.denoiser, self.chains, self.form, self.kernels = denoiser, chains, form, kernels
        self._chain = torch.arange(chains.batch, device=chains.x.device).unsqueeze(1)

    def round(
        self,
        n: list[int] | None = None,
        lap: Lap = lambda phase: None,
        width: int | None = None,
    ) -> None:
        """Draft, one network call on the whole window, couple, advance.

        Args:
            n: where the chains are, if the host knows; then rows that nobody needs are left out.
            lap: told each phase that has ended.
            width: of this round's window; by default θ, or what is left where the host knows.
        """
        chains, form, compact = self.chains, self.form, n is not None
        left = chains.window if n is None else chains.num_steps - min(n)
        width = min(chains.window, left) if width is None else width
        if form.ahead:
            here = chains.x.unsqueeze(1)
            lap("verify")
            prediction = self.predict(here, 0, compact)
            lap("network")
            self.kernels.observe(chains, self.denoiser, here, prediction, form)
        points, drafts = self.kernels.propose(chains, self.denoiser, form, width)
        lap("draft")
        # Rows are left out only where some are not needed: looking for them costs time.
        compact = n is not None and (form.ahead > 0 or max(n) + width > chains.num_steps)
        later = points[:, form.ahead : form.ahead + width]
        prediction = self.predict(later, form.ahead, compact)
        lap("network")
        self.kernels.verify(chains, self.denoiser, points, drafts, prediction, form)
        lap("verify")

    def predict(self, points: Tensor, ahead: int, compact: bool) -> Tensor:
        """The network at points (B, W, D); if ``compact``, only where wanted, and 0 elsewhere."""
        batch, width, dim = points.shape
        flat = points.reshape(batch * width, dim)
        steps = self.chains.steps(width, ahead).reshape(-1)
        chain = self._chain.expand(batch, width).reshape(-1)
        if not compact:
            return self.denoiser.predict(flat, steps, chain).view(points.shape)
        rows = wanted(self.chains, width, ahead).view(-1).nonzero().view(-1)
        out = torch.zeros_like(flat)
        if len(rows):
            out[rows] = self.denoiser.predict(flat[rows], steps[rows], chain[rows])
        return out.view(points.shape)

    def stats(self, counts: Tensor, seconds: dict[str, float]) -> Stats:
        """What a finished chunk cost; ``counts`` is a copy of the chains' on the host."""
        batch, rows = self.chains.accepted.shape
        marks, by_step = counts.split([6 * batch, 2 * batch * rows])
        calls, evaluations = marks.view(6, batch)[4:]
        accepted, decided = by_step.view(2, batch, rows)[:, :, : self.chains.num_steps]
        return Stats("asd", self.chains.window, calls, evaluations, accepted, decided, seconds)
