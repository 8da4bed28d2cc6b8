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
from dataclasses import dataclass

import torch
from torch import Tensor

from asd_policy.chains import PAIRS, Chains
from asd_policy.coupling import accepts, reflect
from asd_policy.denoiser import Denoiser
from asd_policy.drafts import Form
from asd_policy.rejoin import to_evaluate
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
    """Remember what the network said at points (B, W, D) of the steps from n + ``ahead`` on, the
    first of them where the chain is.

    Args:
        prediction: (B, W, D), the network's; unused where not :func:`wanted`.
    """
    _blame(chains, _observe(chains, denoiser, points, prediction, form, ahead), chains.n)


def _observe(
    chains: Chains, denoiser: Denoiser, points: Tensor, prediction: Tensor, form: Form, ahead: int
) -> Tensor:
    """:func:`observe`, but for what was not finite: (B,) the first such step, or K + 1."""
    width = points.shape[1]
    steps, use = chains.steps(width, ahead), wanted(chains, width, ahead)
    broken = _remember(chains, denoiser, points, prediction, steps, use, form, pair=not ahead)
    _reach(chains, steps[:, -1].clamp(max=chains.num_steps - 1))
    return _first(chains, broken, steps)


def _first(chains: Chains, which: Tensor, steps: Tensor) -> Tensor:
    """(B,) the first of the steps (B, W) that are meant, K + 1 where none is."""
    return torch.where(which, steps, chains.num_steps + 1).amin(1)


def _blame(chains: Chains, broken: Tensor, reached: Tensor) -> None:
    """Note step ``broken`` (B,), at which the network was not finite, where the chain itself was
    there, at steps up to ``reached`` (B,). Elsewhere it was a guess: an error of it would be one
    that the chain, step by step, does not have, and the samples without it of another law."""
    real = (chains.bad < 0) & (broken <= reached)
    chains.bad.copy_(torch.where(real, broken, chains.bad))


def _remember(
    chains: Chains, denoiser: Denoiser, points: Tensor, prediction: Tensor, steps: Tensor,
    use: Tensor, form: Form, pair: bool = True,
) -> Tensor:  # fmt: skip
    """Remember predictions (B, W, D) at points of steps (B, W), where they are of ``use``; (B, W)
    where they were not finite, and what was known stays (x̂0 = 0 where nothing was).

    Where step n was evaluated before, at the guess that a rejection has since replaced, the
    difference becomes a secant ``pair``.
    """
    width, rows, memory = points.shape[1], chains.rows(steps), chains.memory_rows(steps)
    before, origin = (chains.take(t, memory, width) for t in (chains.value, chains.point))
    x0 = denoiser.x0(points, prediction, steps)
    x0 = torch.where(use.unsqueeze(2), x0, before)
    broken, known = use & ~x0.isfinite().all(-1), steps <= chains.last.unsqueeze(1)
    x0 = torch.where(broken.unsqueeze(2), torch.where(known.unsqueeze(2), before, 0.0), x0)
    displacement, change = points - origin, x0 - before
    points = torch.where((broken & known).unsqueeze(2), origin, points)
    known = known & use & ~broken
    if form.learn:
        for total, other in ((chains.cross, change), (chains.square, displacement)):
            sums = torch.where(known, (displacement * other).sum(-1), 0.0)
            sums = torch.where(use, sums, chains.take(total, rows, width))
            total.view(-1).index_copy_(0, rows, sums.view(-1))
    if form.secants and pair:
        _add_secant(chains, displacement[:, 0], change[:, 0], known[:, 0])
    for tensor, values in ((chains.value, x0), (chains.point, points)):
        tensor.flatten(0, 1).index_copy_(0, memory, values.reshape(len(memory), -1))
    chains.calls.add_(use.any(1))
    chains.evaluations.add_(use.sum(1))
    return broken


def _reach(chains: Chains, step: Tensor) -> None:
    """Note that all steps up to ``step`` (B,) are known."""
    chains.last.copy_(torch.maximum(chains.last, step))


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
    width, n = drafts.shape[1], chains.n.clone()
    left = (chains.num_steps - n).clamp(max=width)
    rejected = _couple(chains, points, drafts, chains.steps(width), torch.zeros_like(n), left, form)
    chains.fresh.copy_(~rejected & (n + width < chains.num_steps) & (form.ahead > 0))


def _couple(
    chains: Chains, points: Tensor, drafts: Tensor, steps: Tensor, begin: Tensor, end: Tensor,
    form: Form,
) -> Tensor:  # fmt: skip
    """Couple (B, W) steps in order from position ``begin`` (B,) to before ``end``, and move on.

    Returns:
        (B,) whether a draft was rejected.
    """
    size, width = chains.num_steps, drafts.shape[1]
    rows, position = chains.rows(steps), chains.position[:width]
    noise = chains.noise_of(steps)
    targets = chains.take(chains.value, chains.memory_rows(steps), width)
    scale = chains.tables.delta[steps].unsqueeze(2)
    # Absorbing steps and the last, which has no draft to decide on, have scale 0 and stand.
    delta = torch.where(scale > 0, (drafts - targets) * scale, 0.0)
    stands = accepts(noise, delta, chains.take(chains.log_uniform, rows, width))
    inside = (position >= begin.unsqueeze(1)) & (position < end.unsqueeze(1))
    first = torch.where(stands | ~inside, width, position).amin(1)
    stop = torch.minimum(first, end - 1).clamp_(min=0)
    rejected, at = first < end, steps.gather(1, stop.unsqueeze(1)).squeeze(1)
    _move(chains, (points, targets, noise, delta), stop, at, rejected)
    decided = inside & (position <= stop.unsqueeze(1)) & (steps < size - 1)
    accepted = decided & (position != torch.where(rejected, stop, -1).unsqueeze(1))
    for total, which in ((chains.decided, decided), (chains.accepted, accepted)):
        total.view(-1).index_add_(0, rows, which.view(-1).long())
    if form.learn:
        for i, sums in enumerate((chains.cross, chains.square)):
            used = (chains.take(sums, rows, width) * decided).double()
            chains.learned[i].index_add_(0, steps.reshape(-1), used.view(-1))
    chains.n.copy_((at + 1).clamp(max=size))
    return rejected


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
    broken = _observe(chains, denoiser, later, prediction, form, form.ahead)
    couple(chains, points, drafts, form)
    _blame(chains, broken, chains.n - 1 + chains.fresh.long())  # what is fresh is at n itself


def _move(
    chains: Chains, found: tuple[Tensor, ...], stop: Tensor, at: Tensor, rejected: Tensor
) -> None:
    """New current points, from the last position that was reached, which is of step ``at``.

    As a sample of the target, a·x̂0 + b·x + σ·ξ': after a rejection ξ' is ξ reflected; after an
    accept ξ' = ξ + δ, which makes it the proposal. At the last step δ is zero.
    """
    index = stop.view(-1, 1, 1).expand(-1, 1, chains.dim)
    origin, target, noise, delta = (t.gather(1, index).squeeze(1) for t in found)
    noise = torch.where(rejected.unsqueeze(1), reflect(noise, delta), noise + delta)
    a, b, sigma = (
        t[at].unsqueeze(1) for t in (chains.tables.a, chains.tables.b, chains.tables.sigma)
    )
    chains.x.copy_(a * target + b * origin + sigma * noise)


def settle(
    chains: Chains, denoiser: Denoiser, points: Tensor, steps: Tensor, prediction: Tensor,
    form: Form,
) -> None:  # fmt: skip
    """What follows the network call of a round that rejoins: remember, couple, move on.

    Args:
        points, steps: what :func:`asd_policy.rejoin.walk` gave. prediction: (B, W, D).
    """
    paths, size = chains.paths, chains.num_steps
    assert paths is not None
    broken = _remember(chains, denoiser, points, prediction, steps, steps < size, form)
    _reach(chains, paths.end - 1)
    paths.met[:, :size] |= to_evaluate(chains)
    paths.met.scatter_(1, steps, paths.met.gather(1, steps) & ~broken)
    points, drafts = paths.point[:, :size], paths.draft[:, :size]
    every = chains.position[:size].expand(chains.batch, size)
    _couple(chains, points, drafts, every, chains.n.clone(), paths.end, form)
    here = chains.n.view(-1, 1, 1)
    paths.point.scatter_(1, here.expand(-1, 1, chains.dim), chains.x.unsqueeze(1))
    paths.met.scatter_(1, here.squeeze(2), False)
    _blame(chains, _first(chains, broken, steps), chains.n - 1)


@dataclass(frozen=True)
class Guesses:
    """What a round asks the network, and what it will hold the answers against.

    Attributes:
        points: (B, W, D) to evaluate. steps: (B, W) of them; K and beyond where nothing is.
        path, drafts: (B, W+1, D), (B, W, D) of the window; None of a round that rejoins, whose
            window lies in ``Chains.paths``.
    """

    points: Tensor
    steps: Tensor
    path: Tensor | None = None
    drafts: Tensor | None = None


class AutospeculativeDecoding:
    """ASD as equal rounds on chains whose shapes never change: what an engine runs.

    Args:
        denoiser: of the chains. chains: their state. form: drafts and calls a round.
        kernels: what does the arithmetic.
    """

    def __init__(self, denoiser: Denoiser, chains: Chains, form: Form, kernels: Kernels) -> None:
        self.denoiser, self.chains, self.form, self.kernels = denoiser, chains, form, kernels
        self._chain_of_row: dict[int, Tensor] = {}

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
            use = wanted(chains, 1, 0) if compact else None
            prediction = self.predict(here, chains.steps(1), use)
            lap("network")
            self.kernels.observe(chains, self.denoiser, here, prediction, form)
        guesses = self.guess(width)
        lap("draft")
        # Rows are left out only where some are not needed: looking for them costs time.
        compact = n is not None and (
            form.ahead > 0 or form.rejoin or max(n) + width > chains.num_steps
        )
        prediction = self.evaluate(guesses, compact)
        lap("network")
        self.verify(guesses, prediction)
        lap("verify")

    def going_on(self) -> Tensor:
        """() whether any chain is not done yet."""
        return (self.chains.n < self.chains.num_steps).any()

    def guess(self, width: int) -> Guesses:
        """Draft a window of this width."""
        chains, form = self.chains, self.form
        if form.rejoin:
            return Guesses(*self.kernels.walk(chains, self.denoiser, width))
        points, drafts = self.kernels.propose(chains, self.denoiser, form, width)
        later = points[:, form.ahead : form.ahead + width]
        return Guesses(later, chains.steps(width, form.ahead), points, drafts)

    def evaluate(self, guesses: Guesses, compact: bool) -> Tensor:
        """The network at a round's points."""
        use = guesses.steps < self.chains.num_steps if compact else None
        return self.predict(guesses.points, guesses.steps, use)

    def verify(self, guesses: Guesses, prediction: Tensor) -> None:
        """Couple drafts to what the network said, and advance."""
        chains, denoiser, form, points = self.chains, self.denoiser, self.form, guesses.points
        if guesses.path is None or guesses.drafts is None:
            self.kernels.settle(chains, denoiser, points, guesses.steps, prediction, form)
        else:
            path, drafts = guesses.path, guesses.drafts
            self.kernels.verify(chains, denoiser, path, drafts, prediction, form)

    def predict(self, points: Tensor, steps: Tensor, use: Tensor | None) -> Tensor:
        """The network at points (B, W, D) of steps (B, W); or only at those of ``use``, and 0
        elsewhere."""
        batch, width, dim = points.shape
        flat, steps = points.reshape(batch * width, dim), steps.reshape(-1)
        if width not in self._chain_of_row:
            chains = torch.arange(batch, device=points.device)
            self._chain_of_row[width] = chains.repeat_interleave(width, output_size=batch * width)
        chain = self._chain_of_row[width]
        if use is None:
            return self.denoiser.predict(flat, steps, chain).view(points.shape)
        rows = use.view(-1).nonzero().view(-1)
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
