"""Whether two sets of samples have one law: projections, mode weights, residual norms."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from reference.mixture import Mixture


def p_values(mixture: Mixture, sample: Tensor, reference: Tensor) -> dict[str, float]:
    """Two-sample tests of ``sample`` against ``reference``, both (N, dim)."""
    directions = np.random.default_rng(11).normal(size=(sample.shape[1], 16))
    directions /= np.linalg.norm(directions, axis=0)
    ours, theirs = sample.double().numpy() @ directions, reference.double().numpy() @ directions
    values = {
        f"projection {i}": stats.ks_2samp(ours[:, i], theirs[:, i], method="asymp").pvalue
        for i in range(16)
    }
    counts = [_mode_counts(mixture, x) for x in (sample, reference)]
    values["mode weights"] = stats.chi2_contingency(counts).pvalue
    norms = [_residual_norms(mixture, x) for x in (sample, reference)]
    values["residual norms"] = stats.ks_2samp(*norms, method="asymp").pvalue
    return {name: float(p) for name, p in values.items()}


def smallest_p(values: dict[str, float]) -> float:
    """Smallest p-value after Holm's correction (for the smallest, Bonferroni's)."""
    return min(1.0, len(values) * min(values.values()))


def _mode_counts(mixture: Mixture, x: Tensor) -> np.ndarray:
    return torch.bincount(mixture.nearest(x), minlength=len(mixture.weights)).numpy()


def _residual_norms(mixture: Mixture, x: Tensor) -> np.ndarray:
    """Distance from the nearest mode in standard deviations."""
    centred = (x - mixture.means.to(x)[mixture.nearest(x)]) / mixture.scales.to(x)
    return centred.norm(dim=1).numpy()
