"""ASD for one chain, a step at a time, with dictionaries for tables. Slow and literal.

It consumes the same noise as ``asd_policy.samplers.asd`` and must agree with it on samples, calls,
evaluations and every accept or reject.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from reference.oracles import Array, Chain, Target, couple, left_over

PAIRS, RIDGE, PASSES = 6, 0.05, 1


@dataclass
class Trace:
    """What one chain did. ``decisions``: (step, accepted) in the order in which they were made."""

    sample: Array
    calls: int = 0
    evaluations: int = 0
    decisions: list[tuple[int, bool]] = field(default_factory=list)


@dataclass
class Knowledge:
    """M and X of the design: the last x̂0 of a step and the point where it was evaluated."""

    value: dict[int, Array] = field(default_factory=dict)
    point: dict[int, Array] = field(default_factory=dict)
    pairs: list[tuple[Array, Array]] = field(default_factory=list)

    def remember(self, n: int, x: Array, x0: Array) -> None:
        self.value[n], self.point[n] = x0, x

    def learn(self, n: int, x: Array, x0: Array, slope: float) -> None:
        """A secant from the step's last evaluation, if it had one, to the one at (x, x0)."""
        if n in self.value:
            step = x - self.point[n]
            pair = step, x0 - self.value[n] - slope * step
            self.pairs = [*self.pairs, pair][-PAIRS:]

    def predict(self, displacement: Array) -> Array:
        """Ridge regression of a displacement on the stored ones, applied to their residuals."""
        if not self.pairs:
            return np.zeros_like(displacement)
        lengths = [np.linalg.norm(step) for step, _ in self.pairs]
        steps, residuals = (
            np.stack([v / length for v, length in zip(side, lengths, strict=True)], 1)
            for side in zip(*self.pairs, strict=True)
        )
        gram = steps.T @ steps + RIDGE * np.eye(len(lengths))
        return residuals @ np.linalg.solve(gram, steps.T @ displacement)


def asd(
    chain: Chain,
    target: Target,
    clip: float | None,
    slopes: Array,
    initial: Array,
    noise: Array,
    log_uniform: Array,
    *,
    draft: str,
    calls_per_round: int,
    window: int,
    rejoin: bool = False,
) -> Trace:
    """One chain: initial (D,), noise (K, D), log_uniform (K,), slopes (K,)."""
    num_steps, known, trace = len(chain.a), Knowledge(), Trace(initial)
    noise, log_uniform = noise.copy(), log_uniform.copy()
    last: dict[int, tuple[Array, Array]] = {}  # mean and end of every step's last proposal
    x, n, fresh = initial, 0, False

    def evaluate(points: list[tuple[int, Array]]) -> None:
        found = {m: target(at, m) for m, at in points}
        if points[0][0] == n:
            known.learn(n, x, found[n], slopes[n])
        for m, at in points:
            known.remember(m, at, found[m])
        trace.calls += 1
        trace.evaluations += len(points)

    def step(m: int, at: Array, x0: Array, xi: Array) -> Array:
        return chain.a[m] * x0 + chain.b[m] * at + chain.sigma[m] * xi

    while n < num_steps:
        if calls_per_round == 2 and not fresh:
            evaluate([(n, x)])
        if rejoin:
            there = known, slopes, clip, x, n, window, chain, last
            points, drafts, ask = _walk(*there, noise, log_uniform)
        else:
            end = min(n + window, num_steps)
            points, drafts = _propose(draft, known, slopes, clip, x, n, end, step, noise)
            late = calls_per_round - 1  # then the end is evaluated too, and n was
            ask = range(n + late, min(end + late, num_steps))
        if ask:
            evaluate([(m, points[m]) for m in ask])
        targets = known.value
        for m in range(n, n + len(drafts)):
            if m == num_steps - 1:  # no draft to decide on
                x = step(m, points[m], targets[m], noise[m])
                n, fresh = num_steps, False
                break
            delta = chain.a[m] / chain.sigma[m] * (drafts[m] - targets[m])
            accepted, xi = couple(noise[m], delta, log_uniform[m])
            trace.decisions.append((m, accepted))
            x = step(m, points[m], targets[m], xi)
            n, fresh = m + 1, accepted
            if not accepted:
                break
    trace.sample = x
    return trace


def _walk(known, slopes, clip, x, n, window, chain, last, noise, log_uniform):  # type: ignore[no-untyped-def]
    """Points and drafts from n on, and the steps to evaluate: as far as the window pays for.

    Where a step was proposed from before, its proposal tries to end where the last one did.
    """
    points, drafts, new = {n: x}, {}, []
    furthest = max(known.value, default=None)
    for m in range(n, len(chain.a)):
        if known.point.get(m) is not points[m]:  # a point that was not evaluated as it stands
            if len(new) == window:
                break
            new.append(m)
        if m in known.value:
            shift = points[m] - known.point[m]
            x0 = known.value[m] + slopes[m] * shift + known.predict(shift)
            drafts[m] = x0 if clip is None else np.clip(x0, -clip, clip)
        else:
            carried = np.zeros_like(x) if furthest is None else known.value[furthest]
            drafts[m] = drafts.get(m - 1, carried)
        if m == len(chain.a) - 1:
            break
        mean = chain.a[m] * drafts[m] + chain.b[m] * points[m]
        points[m + 1] = mean + chain.sigma[m] * noise[m]
        if m in last:
            mean_then, end_then = last[m]
            delta = (mean_then - mean) / chain.sigma[m]
            ratio = -float(noise[m] @ delta) - 0.5 * float(delta @ delta)
            back, noise[m] = couple(noise[m], delta, log_uniform[m])
            log_uniform[m] = left_over(log_uniform[m], ratio, back)
            points[m + 1] = end_then if back else mean + chain.sigma[m] * noise[m]
        last[m] = mean, points[m + 1]
    return points, drafts, new


def _propose(draft, known, slopes, clip, x, n, end, step, noise):  # type: ignore[no-untyped-def]
    """Points n … end and drafts n … end−1: a plain pass, then passes that correct the drafts."""
    furthest = max(known.value, default=None)

    def walk(rule):  # type: ignore[no-untyped-def]
        points, made = {n: x}, {}
        for m in range(n, end):
            made[m] = rule(m, points[m])
            points[m + 1] = step(m, points[m], made[m], noise[m])
        return points, made

    def plain(m: int, at: Array) -> Array:
        source = n if draft == "frozen" else m
        if source not in known.value:
            source = furthest
        return np.zeros_like(at) if source is None else known.value[source]

    def corrected(m: int, at: Array) -> Array:
        shift = at - known.point[m]
        x0 = known.value[m] + slopes[m] * shift
        return clipped(x0 + known.predict(shift) if draft == "secant" else x0)

    def clipped(x0: Array) -> Array:
        return x0 if clip is None else np.clip(x0, -clip, clip)

    points, drafts = walk(plain)
    for _ in range(PASSES if draft in ("slope", "secant") else 0):
        drafts = {}
        for m in range(n, end):
            if m in known.value:
                drafts[m] = corrected(m, points[m])
            else:  # carried on from the furthest step that is known, if that lies in the window
                drafts[m] = drafts.get(furthest, plain(m, points[m]))
        points, _ = walk(lambda m, at, drafts=drafts: drafts[m])
    return points, drafts
