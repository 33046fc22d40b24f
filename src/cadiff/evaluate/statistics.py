"""How sure: intervals and tests over images, and how many images a question needs. Pure numpy and scipy.

The image is the unit everywhere: samples of one image share its brain response and are averaged first,
because they are not independent. With one value per image and system, the comparisons are paired. Several subjects
and seeds: `hierarchy`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from cadiff.errors import ConfigError, DataError

ROUNDING = 1e-13
"""Relative differences that only arithmetic made."""


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
    equal but for rounding) the interval is that point: a bootstrap cannot see what never happened, so read "0 % [0, 0]" with n
    in mind.
    """
    x = _finite(values)
    n = len(x)
    size = np.abs(x).max()
    if n < 2 or np.ptp(x) <= ROUNDING * size:
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
    acceleration = stats.skew(x / size) / (6 * np.sqrt(n))  # scores of 1e-300 would underflow
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
    if 2**n <= num_draws:
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


def paired_power(difference: float, sd: float, num_images: int, *, alpha: float = 0.05) -> float:
    """Probability that a two-sided paired t-test over `num_images` images finds a true `difference`.

    `sd` is the deviation of the per-image differences. Exact for normal differences: the test statistic follows
    a non-central t with non-centrality difference / sd * sqrt(n). Rejections on the wrong side count, as they do
    in practice, so the power at no difference is `alpha`.

    Raises:
        ConfigError: sd not above 0, alpha outside 0..1, or fewer than two images.
    """
    _check_plan(sd, alpha)
    if num_images < 2:
        raise ConfigError(f"A paired test needs at least two images; it was asked about {num_images}.")
    df, shift = num_images - 1, abs(difference) / sd * np.sqrt(num_images)
    bound = float(stats.t.isf(alpha / 2, df))
    return 1.0 - _t_cdf(bound, df, shift) + _t_cdf(-bound, df, shift)


def required_images(
    difference: float, sd_of_differences: float, *, power: float = 0.8, alpha: float = 0.05
) -> int:
    """Fewest test images with which a paired test finds a true `difference` with probability `power`.

    Guenther's (1981) normal formula with its t correction, ((z_{1-alpha/2} + z_power) / d)^2 + z_{1-alpha/2}^2 / 2 with
    d = difference / sd, starts a search in the exact `paired_power`; the two differ by an image or two. Samples of one
    image are averaged before differences are taken: more samples shrink the deviation, not this number directly.

    Args:
        difference: true mean difference of the two systems, in the score's own units; its sign does not matter.
        sd_of_differences: deviation over images of the paired differences, from a pilot or an earlier comparison
            (`Comparison.difference / Comparison.effect_size`).
        power: wanted probability of detection, above alpha and below 1.
        alpha: two-sided level of the test. Divide it by the number of comparisons where several are made.

    Raises:
        ConfigError: a difference of 0 (no number of images finds it), or settings outside their ranges.
    """
    _check_plan(sd_of_differences, alpha, power)
    if not difference or not np.isfinite(difference):
        raise ConfigError(
            f"No number of images shows a difference of {difference}; give the smallest one that matters."
        )
    z = stats.norm.isf(alpha / 2)
    d = abs(difference) / sd_of_differences
    n = max(2, int(((z + stats.norm.ppf(power)) / d) ** 2 + z**2 / 2))
    while n > 2 and paired_power(difference, sd_of_differences, n - 1, alpha=alpha) >= power:
        n -= 1
    while paired_power(difference, sd_of_differences, n, alpha=alpha) < power:
        n += 1
    return n


def detectable_difference(
    num_images: int, sd_of_differences: float, *, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Smallest true difference that a paired test over `num_images` finds with probability `power`.

    The inverse of `required_images`, in the score's own units; arguments as there.
    """
    _check_plan(sd_of_differences, alpha, power)
    if num_images < 2:
        raise ConfigError(f"A paired test needs at least two images; it was asked about {num_images}.")

    def missing(d: float) -> float:
        return paired_power(d, 1.0, num_images, alpha=alpha) - power

    low, high = 0.0, 1 / np.sqrt(num_images)
    while missing(high) < 0:
        low, high = high, 2 * high
    return float(optimize.root_scalar(missing, bracket=(low, high)).root) * sd_of_differences


def effect_size_interval(effect_size: float, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of Cohen's d_z from `n` pairs: the non-centralities under which the observed t lies at either tail.

    Exact for normal differences (Steiger & Fouladi 1997; Cumming & Finch 2001). An infinite effect size (no spread)
    has the interval of itself.

    Raises:
        ConfigError: fewer than two pairs, or a level outside 0..1.
    """
    if n < 2 or not 0 < level < 1:
        raise ConfigError(
            f"An effect size needs at least two pairs and a level inside 0..1: {n} pairs, level {level}."
        )
    if not np.isfinite(effect_size):
        return effect_size, effect_size
    t, df = effect_size * np.sqrt(n), n - 1
    reach = 8 * np.sqrt(1 + t**2 / 2)  # the furthest that a shift can lie from t, at one degree of freedom

    def end(tail: float) -> float:
        bracket = (t - reach, t + reach)
        found = optimize.root_scalar(lambda shift: _t_cdf(t, df, shift) - tail, bracket=bracket)
        return float(found.root / np.sqrt(n))

    return end((1 + level) / 2), end((1 - level) / 2)


def _t_cdf(t: float, df: int, shift: float) -> float:
    """The non-central t's distribution function; SciPy gives NaN where a tail underflows."""
    found = float(stats.nct.cdf(t, df, shift))
    return float(t > shift) if np.isnan(found) else found


def _check_plan(sd: float, alpha: float, power: float = 0.8) -> None:
    if not (np.isfinite(sd) and sd > 0):
        raise ConfigError(f"The deviation of the differences over images must be above 0; it is {sd}.")
    if not 0 < alpha < power < 1:
        raise ConfigError(f"Planning needs 0 < alpha < power < 1; alpha is {alpha}, power {power}.")


def _finite(values: np.ndarray) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0 or not np.isfinite(x).all():
        raise DataError(
            f"Statistics need one finite value per image; got shape {x.shape} with {x.size} values."
        )
    return x
