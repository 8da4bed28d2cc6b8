"""Comparing two samplers seed by seed and stopping when it is decided: evidence that stays valid
however often one looks at it.

All of it is e-processes: under its hypothesis the expected e-value is at most 1 at any stopping
time, so that it ever reaches 1/α with probability α at most (Ville's inequality). They depend on
counts alone: pairs in which only the first sampler succeeded, only the second, and all.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats
from scipy.optimize import brentq

ALPHA = 0.05
Array = np.ndarray
# Stakes that a bet is spread over, denser at both ends (arcsine): small ones win where many pairs
# are discordant, large ones where hardly any is.
_STAKES = np.sin(np.pi / 2 * (np.arange(50) + 0.5) / 50) ** 2


def log_e_difference(only_a: ArrayLike, only_b: ArrayLike) -> Any:
    """Of the hypothesis that a discordant pair favours either with equal chance: the likelihood of
    the counts under Jeffreys' prior, against that under one half (Krichevsky and Trofimov 1981)."""
    a, b = np.asarray(only_a, float), np.asarray(only_b, float)
    mixed = special.betaln(a + 0.5, b + 0.5) - special.betaln(0.5, 0.5)
    return mixed + (a + b) * math.log(2)


def log_e_above(only_a: ArrayLike, only_b: ArrayLike, n: ArrayLike, difference: float) -> Any:
    """Of the hypothesis P(a) − P(b) ≤ difference: the capital of a gambler who bets against it.

    Of a pair with D = 1, 0 or −1 a stake c gives 1 + c·(D − difference)/(1 + difference), whose
    mean is 1 at most; the capital is spread over stakes (Waudby-Smith and Ramdas, JRSS B 86, 2024).
    It falls as ``difference`` grows.

    Args:
        only_a, only_b, n: of one shape (…).

    Returns:
        (…) natural logarithms.
    """
    a, b, n = (np.asarray(x, float)[..., None] for x in (only_a, only_b, n))
    kept, won = 1 - _STAKES, _STAKES / (1 + difference)
    capital = a * np.log(kept + 2 * won) + (n - a - b) * np.log(kept + won) + b * np.log(kept)
    return special.logsumexp(capital, axis=-1) - math.log(len(_STAKES))


def valid_interval(only_a: int, only_b: int, n: int, alpha: float = ALPHA) -> tuple[float, float]:
    """Differences P(a) − P(b) that no e-value refuses: they hold the true one with probability
    1 − α at every n at once, and so at the one where a comparison stopped."""
    level, edge = math.log(2 / alpha), 1 - 1e-9

    def lowest(a: int, b: int) -> float:
        def excess(difference: float) -> float:
            return float(log_e_above(a, b, n, difference)) - level

        return -1.0 if excess(-edge) <= 0 else float(brentq(excess, -edge, edge, xtol=1e-9))

    return lowest(only_a, only_b), -lowest(only_b, only_a)


def chance_better(only_a: int, only_b: int) -> float:
    """Posterior probability that a succeeds more often than b, under Jeffreys' prior for which of
    the two a discordant pair favours."""
    return float(stats.beta.sf(0.5, only_a + 0.5, only_b + 0.5))


def decision(only_a: ArrayLike, only_b: ArrayLike, n: ArrayLike, margin: float) -> Any:
    """What is decided after n pairs, each wrong in at most 5% of comparisons, whenever they stop.

    Returns:
        (…) of text: "worse" or "better" where there is a difference, "not worse" where a is not
        worse by ``margin`` or more, and "" where nothing is decided.
    """
    a, b = np.asarray(only_a), np.asarray(only_b)
    different = log_e_difference(a, b) >= -math.log(ALPHA)
    not_worse = log_e_above(a, b, n, -margin) >= -math.log(ALPHA)
    choices = ["worse", "better", "not worse"]
    return np.select([different & (a < b), different & (a > b), not_worse], choices, "")


def letters(different: Array) -> list[str]:
    """The compact letter display of a comparison of all with all: two share a letter where no
    difference was found (insert and absorb; Piepho, J. Comput. Graph. Stat. 13, 2004).

    Args:
        different: (S, S) bool, symmetric.

    Returns:
        S texts.
    """
    columns = [frozenset(range(len(different)))]
    for i, j in zip(*np.nonzero(np.triu(different)), strict=True):
        both = [column for column in columns if {i, j} <= column]
        columns = [column for column in columns if column not in both]
        for column in (c - {k} for c in both for k in (j, i)):
            if not any(column <= other for other in columns):
                columns.append(column)
    columns.sort(key=lambda column: sorted(column))
    return [
        "".join(chr(ord("a") + k) for k, column in enumerate(columns) if i in column)
        for i in range(len(different))
    ]
