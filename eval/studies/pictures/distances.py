"""Distances between two sets of pictures, by their features: Fréchet's and the kernel's.

Both with bootstrap intervals. A bootstrap's sets have fewer different pictures than the sets
themselves, so that its distances are larger; intervals are therefore the bootstrap's spread about
its own mean, put about the distance that was found. That distance keeps what a finite set adds to
it (Fréchet's; the kernel's is unbiased), which is alike for sets of one size: a second set of the
same sampler tells how much it is. Of two samplers that are equal, where both distances are
quadratic in what differs, the intervals are some twice as wide as the distances vary: they hold 0
nearly always, and a small difference is seen less often than it might be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from asd_policy.errors import InputError

REPEATS = 400  # of the bootstrap
Array = np.ndarray
# Distances (R,) of R weightings (R, n) of a's features and (R, m) of b's.
Weighted = Callable[[Array, Array], Array]


def frechet(a: Array, b: Array) -> Weighted:
    """‖μa − μb‖² + tr(Σa + Σb − 2(ΣaΣb)^½) of features (n, d) and (m, d) (Heusel et al., 2017)."""

    def distance(wa: Array, wb: Array) -> Array:
        moments = zip((_moments(a, w) for w in wa), (_moments(b, w) for w in wb), strict=True)
        return np.array([_gaussians(*one, *other) for one, other in moments])

    return distance


def _moments(x: Array, weights: Array) -> tuple[Array, Array]:
    total = weights.sum()
    mean = weights @ x / total
    centred = x - mean
    return mean, (centred * weights[:, None]).T @ centred / (total - 1)


def _gaussians(mean: Array, cov: Array, mean2: Array, cov2: Array) -> float:
    values, vectors = np.linalg.eigh(cov)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    # ΣaΣb has the eigenvalues of Σa^½ Σb Σa^½, which is symmetric.
    between = np.sqrt(np.linalg.eigvalsh(root @ cov2 @ root).clip(0)).sum()
    return float(((mean - mean2) ** 2).sum() + np.trace(cov) + np.trace(cov2) - 2 * between)


def kernel(a: Array, b: Array) -> Weighted:
    """Squared maximum mean discrepancy of the kernel (x·y/d + 1)³, unbiased: KID (Bińkowski et
    al., 2018). It may be negative where the sets are alike."""
    width = a.shape[1]
    aa, bb, ab = ((x @ y.T / width + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))

    def within(k: Array, w: Array) -> Array:
        squares = w**2
        total = np.einsum("ri,ri->r", w @ k, w) - squares @ np.diag(k)
        found: Array = total / (w.sum(1) ** 2 - squares.sum(1))
        return found

    def distance(wa: Array, wb: Array) -> Array:
        across = np.einsum("rj,rj->r", wa @ ab, wb) / (wa.sum(1) * wb.sum(1))
        found: Array = within(aa, wa) + within(bb, wb) - 2 * across
        return found

    return distance


DISTANCES: Mapping[str, Callable[[Array, Array], Weighted]] = {
    "frechet": frechet,
    "kernel": kernel,
}


def compare(
    sets: Mapping[str, Array], reference: str, yardstick: str | None, seed: int = 0
) -> dict[str, dict[str, dict[str, object]]]:
    """Distances of every set to the reference, and how far they are beyond the yardstick's.

    Args:
        sets: name → features (n, d). reference: a name. yardstick: another, which is as far from
            the reference as chance alone takes it; None: there is none.

    Returns:
        Name → distance → {"estimate", "ci95"}, and "beyond" with the same of the difference to the
        yardstick's, in which what finite sets add cancels.

    Raises:
        ValueError: features of two widths, or a set of fewer than two pictures.
    """
    _check(sets)
    random = np.random.default_rng(seed)
    weights = {name: _weights(len(x), random) for name, x in sets.items()}
    found: dict[str, dict[str, dict[str, object]]] = {}
    for kind, distance in DISTANCES.items():
        far = {
            name: distance(x, sets[reference])(weights[name], weights[reference])
            for name, x in sets.items()
            if name != reference
        }
        for name, values in far.items():
            told = _interval(values, least=0.0 if kind == "frechet" else None)
            alone = yardstick is None or name == yardstick
            beyond = None if alone else _interval(values - far[str(yardstick)])
            found.setdefault(name, {})[kind] = told | {"beyond": beyond}
    return found


def _weights(pictures: int, random: np.random.Generator) -> Array:
    """Of the set as it is, and of the bootstrap's."""
    again = random.multinomial(pictures, np.full(pictures, 1 / pictures), REPEATS)
    while (alone := again.max(1) == pictures).any():  # one picture has no distance within
        again[alone] = random.multinomial(pictures, np.full(pictures, 1 / pictures), alone.sum())
    return np.vstack([np.ones(pictures), again])


def _interval(values: Array, least: float | None = None) -> dict[str, object]:
    """Of what was found, which comes first, and of the bootstrap's."""
    estimate, again = float(values[0]), values[1:]
    ends = estimate + np.quantile(again - again.mean(), (0.025, 0.975))
    if least is not None:
        ends = ends.clip(least)
    return {"estimate": estimate, "ci95": ends.tolist()}


def _check(sets: Mapping[str, Array]) -> None:
    widths = {x.shape[1] for x in sets.values()}
    if len(widths) > 1:
        raise InputError(f"expected features of one width, got {sorted(widths)}")
    for name, x in sets.items():
        if len(x) < 2:
            raise InputError(f"a distance needs two pictures or more; {name} has {len(x)}")
        if not np.isfinite(x).all():
            raise InputError(f"expected finite features; those of {name} are not")
