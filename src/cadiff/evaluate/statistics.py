"""How sure: intervals and tests over images. Pure numpy and scipy.

The image is the unit everywhere: samples of one image share its brain response and are averaged first,
because they are not independent. With one value per image and system, the comparisons are paired.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from cadiff.errors import DataError


@dataclass(frozen=True)
class Comparison:
    """Paired comparison of two systems over the same images; `difference` is first minus second."""

    difference: float
    low: float
    """Lower end of the interval of the difference."""
    high: float
    p: float
    """Two-sided p of the sign-flip permutation test."""
    exact: bool
    """Whether all sign flips were enumerated."""
    t: float
    """Paired t statistic; 0 when every difference is 0."""
    p_t: float
    """Two-sided p of the paired t-test."""
    effect_size: float
    """Mean difference over the deviation of differences (Cohen's d_z); infinite without spread."""
    n: int


def bootstrap_interval(
    values: np.ndarray, *, level: float = 0.95, num_draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Interval of the mean of `values (n,)` by resampling images; BCa (Efron 1987, Eq. 3.8), so skewed scores
    are fine.

    The acceleration of a mean is known in closed form, skewness / (6 sqrt n). Without any spread (all values
    equal) the interval is that point: a bootstrap cannot see what never happened, so read "0 % [0, 0]" with n
    in mind.
    """
    x = _finite(values)
    n = len(x)
    if n < 2 or np.ptp(x) == 0:
        return float(x.mean()), float(x.mean())
    generator = np.random.default_rng(seed)
    means = np.empty(num_draws)
    step = max(1, 4_000_000 // n)  # bounds memory at about 32 MB
    for start in range(0, num_draws, step):
        rows = min(step, num_draws - start)
        means[start : start + rows] = x[generator.integers(0, n, size=(rows, n))].mean(axis=1)
    mean = x.mean()
    # Share of draws below the estimate, ties halved: discrete scores give many ties.
    below = ((means < mean).sum() + 0.5 * (means == mean).sum()) / num_draws
    z0 = stats.norm.ppf(np.clip(below, 1 / num_draws, 1 - 1 / num_draws))
    acceleration = stats.skew(x) / (6 * np.sqrt(n))
    z = z0 + stats.norm.ppf([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(means, stats.norm.cdf(z0 + z / (1 - acceleration * z)))
    return float(low), float(high)


def permutation_p(differences: np.ndarray, *, num_draws: int = 10_000, seed: int = 0) -> tuple[float, bool]:
    """Two-sided p that paired `differences (n,)` are symmetric about 0, by random sign flips of their mean.

    Returns p and whether it is exact: all 2^n flips are enumerated when that is no more than `num_draws` (n
    <= 13 by default); otherwise the observed flip counts as one of the draws, (1 + hits) / (1 + draws), so p
    is never 0 and the test keeps its level (Phipson & Smyth 2010).
    """
    d = _finite(differences)
    n = len(d)
    observed = abs(d.sum())
    bound = observed - 1e-12 * np.abs(d).sum()  # sums in another order may round below the observed one
    if 2.0**n <= num_draws:
        codes = np.arange(2**n)[:, None] >> np.arange(n)
        sums = (1 - 2 * (codes & 1)) @ d
        return float((np.abs(sums) >= bound).mean()), True
    generator = np.random.default_rng(seed)
    hits, step = 0, max(1, 4_000_000 // n)
    for start in range(0, num_draws, step):
        signs = 1 - 2 * generator.integers(0, 2, size=(min(step, num_draws - start), n))
        hits += int((np.abs(signs @ d) >= bound).sum())
    return (1 + hits) / (1 + num_draws), False


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's step-down correction (1979): adjusted p values `(m,)` that control the family-wise error."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    scaled = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted


def compare(
    first: np.ndarray, second: np.ndarray, *, level: float = 0.95, num_draws: int = 10_000, seed: int = 0
) -> Comparison:
    """Everything about the paired difference of two systems' scores, each `(n,)` in the same order of
    images."""
    if np.shape(first) != np.shape(second):
        raise DataError(
            f"Paired scores must belong to the same images: {np.shape(first)} against {np.shape(second)}."
        )
    d = _finite(np.asarray(first) - np.asarray(second))
    low, high = bootstrap_interval(d, level=level, num_draws=num_draws, seed=seed)
    p, exact = permutation_p(d, num_draws=num_draws, seed=seed)
    mean, sd = float(d.mean()), float(d.std(ddof=1)) if len(d) > 1 else 0.0
    if sd == 0:
        t, p_t = (0.0, 1.0) if mean == 0 else (float(np.copysign(np.inf, mean)), 0.0)
    else:
        t = mean / (sd / np.sqrt(len(d)))
        p_t = float(2 * stats.t.sf(abs(t), len(d) - 1))
    effect = 0.0 if mean == 0 else (mean / sd if sd else float(np.copysign(np.inf, mean)))
    return Comparison(mean, low, high, p, exact, t, p_t, effect, len(d))


def _finite(values: np.ndarray) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0 or not np.isfinite(x).all():
        raise DataError(
            f"Statistics need one finite value per image; got shape {x.shape} with {x.size} values."
        )
    return x
