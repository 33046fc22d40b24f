"""Do the systems come in the published order? Spearman's rank correlation, and what it could have been with these images.

Resampled ranks are those of means with the noise of the images added once more, which draws a rank correlation towards 0:
their range is no confidence interval (where the true one is .6 it covers it in a third of cases). What they can tell is how
far the order could have come out at all, so that is reported beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from math import factorial
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from cadiff.evaluate.hierarchy import ScoreTable
    from cadiff.report.crossed import Scores, System

FEWEST = 3


def published_order(
    systems: Sequence[System], scores: Scores, metric: str, *, higher: bool, num_draws: int, seed: int
) -> dict[str, Any] | None:
    """Published numbers (higher is better) against measured ones; None with fewer than `FEWEST` points.

    A point is a system, or a system on one subject where numbers were published by subject. Images are drawn anew for all
    points at once, and subjects too where a point is a mean over several. p is of a random order of the published numbers,
    two-sided.

    Returns a dict of rho, p, num, points (system, subject, published, measured), `resampled`, the 2.5 and 97.5 % quantiles of
    rho over the draws, and `attainable`: rho on average over the draws if the same measured scores came in the published
    order. The scores are spread by noise as well, so true ones in that order would reach less.
    """
    points: list[tuple[str, str | None, float, ScoreTable]] = []
    for system in systems:
        for subject, number in system.published.items():
            runs = [one for one in system.measured if subject in ("", one.subject)]
            table = scores.table(runs, None, metric)
            if table is not None:
                points.append((system.name, subject or None, float(number), table))
    if len(points) < FEWEST:
        return None
    published = np.array([point[2] for point in points]) * (1 if higher else -1)
    draws = resampled_means([point[3] for point in points], num_draws, seed)
    measured = np.array([mean_of(point[3]) for point in points])
    in_order = np.sort(measured)[np.argsort(np.argsort(published, kind="stable"))]
    found, best = (spearman(published, means) for means in (draws, draws - measured + in_order))
    found, best = found[np.isfinite(found)], best[np.isfinite(best)]
    rho = float(spearman(published, measured[None])[0])
    return {
        "rho": rho if np.isfinite(rho) else None,
        "resampled": [float(end) for end in np.quantile(found, [0.025, 0.975])] if len(found) else None,
        "attainable": float(best.mean()) if len(best) else None,
        "p": order_p(published, measured, num_draws=num_draws, seed=seed) if np.isfinite(rho) else None,
        "num": len(points),
        "points": [
            {"system": name, "subject": subject, "published": number, "measured": float(value)}
            for (name, subject, number, _), value in zip(points, measured, strict=True)
        ],
    }


def mean_of(table: ScoreTable) -> float:
    """Mean of the subjects' means."""
    return float(np.mean([table.values[table.subjects == name].mean() for name in np.unique(table.subjects)]))


def resampled_means(tables: Sequence[ScoreTable], num_draws: int, seed: int) -> np.ndarray:
    """Means (num_draws, tables) over images, and subjects, drawn with replacement for all tables at once."""
    generator = np.random.default_rng(seed)
    subjects = np.unique(np.concatenate([table.subjects for table in tables]))
    seen = {
        name: np.unique(np.concatenate([t.images[t.subjects == name] for t in tables])) for name in subjects
    }
    everything, viewers = np.unique(np.concatenate(list(seen.values())), return_counts=True)
    several = everything[viewers > 1]  # drawn once for everybody who saw them
    together = _counts(len(several), num_draws, generator)
    counts: dict[Any, np.ndarray] = {}
    for name, images in seen.items():
        counts[name] = np.empty((num_draws, len(images)), dtype=together.dtype)
        both = np.isin(images, several)
        counts[name][:, both] = together[:, np.searchsorted(several, images[both])]
        counts[name][:, ~both] = _counts(int((~both).sum()), num_draws, generator)
    people = _counts(len(subjects), num_draws, generator).astype(float)
    found = np.empty((num_draws, len(tables)))
    for column, table in enumerate(tables):
        total, weight = np.zeros(num_draws), np.zeros(num_draws)
        own = [name for name in subjects if (table.subjects == name).any()]
        for name in own:
            rows = table.subjects == name
            times = counts[name][:, np.searchsorted(seen[name], table.images[rows])]
            mean = _ratio(times @ table.values[rows], times.sum(axis=1))
            share = people[:, np.searchsorted(subjects, name)] if len(own) > 1 else np.ones(num_draws)
            total += np.where(share > 0, share * np.nan_to_num(mean), 0)
            weight += share * np.isfinite(mean)
        found[:, column] = _ratio(total, weight)
    return found


def spearman(published: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Rank correlation (draws,) of `published (n,)` with every row of `measured (draws, n)`; NaN where all are tied."""
    x = stats.rankdata(published)
    y = stats.rankdata(measured, axis=1)
    x, y = x - x.mean(), y - y.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (y @ x) / np.sqrt((x**2).sum() * (y**2).sum(axis=1))


def order_p(published: np.ndarray, measured: np.ndarray, *, num_draws: int, seed: int) -> float:
    """Two-sided p of the rank correlation when the order is random; exact where few points allow it."""
    n = len(published)
    if factorial(n) <= num_draws:
        orders = np.array(list(permutations(range(n))))
        extra = 0
    else:
        generator = np.random.default_rng(seed)
        orders = np.array([generator.permutation(n) for _ in range(num_draws)])
        extra = 1  # the observed order counts as one of the draws
    seen = abs(spearman(published, measured[None])[0])
    hits = int((np.abs(spearman(published, measured[orders])) >= seen - 1e-12).sum())
    return (hits + extra) / (len(orders) + extra)


def _counts(size: int, num_draws: int, generator: np.random.Generator) -> np.ndarray:
    """How often each of `size` things is drawn in `size` draws, (num_draws, size)."""
    if not size:
        return np.zeros((num_draws, 0), dtype=np.int64)
    return generator.multinomial(size, np.full(size, 1 / size), size=num_draws)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full(len(a), np.nan), where=b > 0)
