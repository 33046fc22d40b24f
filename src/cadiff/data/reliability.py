"""How much of a voxel's response repeats: split-half reliability and the single-trial noise ceiling.

Both read trials of stimuli that were shown more than once. Letters in shapes: n trials, V voxels, m stimuli.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cadiff.errors import DataError


def noise_ceiling(betas: np.ndarray, stimulus_ids: Sequence[str]) -> np.ndarray:
    """Fraction of a single trial's variance that the stimulus explains, per voxel: float64 (V,) in [0, 1].

    One-way variance components (for example Allen et al. 2022, "noise ceiling" at one trial, as a fraction): with r_i
    trials of stimulus i, the pooled variance inside stimuli estimates the noise n2, the variance between their means
    exceeds n2 / r by the signal s2, and the ceiling is s2 / (s2 + n2), cut at 0. Unequal counts use the usual
    r0 = (N - sum r_i^2 / N) / (m - 1).

    betas: (n, V); stimulus_ids: n names. Raises DataError when fewer than two stimuli, or none more than once, are shown.
    """
    betas, rows = _checked(betas, stimulus_ids)
    counts = np.array([len(group) for group in rows], dtype=np.float64)
    means = np.stack([betas[group].mean(axis=0) for group in rows])  # (m, V)
    inside = sum(((betas[group] - mean) ** 2).sum(axis=0) for group, mean in zip(rows, means, strict=True))
    total, num = counts.sum(), len(rows)
    noise = inside / (total - num)
    grand = (counts[:, None] * means).sum(axis=0) / total
    between = (counts[:, None] * (means - grand) ** 2).sum(axis=0) / (num - 1)
    per_stimulus = (total - (counts**2).sum() / total) / (num - 1)
    signal = np.maximum((between - noise) / per_stimulus, 0.0)
    variance = signal + noise
    return np.divide(signal, variance, out=np.zeros_like(signal), where=variance > 0)


def split_half(
    betas: np.ndarray, stimulus_ids: Sequence[str], seed: int = 0, num_splits: int = 20
) -> tuple[np.ndarray, np.ndarray]:
    """Split-half reliability per voxel: (of half the repeats, of all repeats by Spearman-Brown), float64 (V,) each in [-1, 1].

    For each of `num_splits` random halvings, the averages of both halves correlate over stimuli; r is the mean of these
    correlations and Spearman-Brown's 2 r / (1 + r) is what the average of all repeats would reach (negative r stays).
    Stimuli shown once are left out. A voxel that does not vary has reliability 0.
    """
    betas, rows = _checked(betas, stimulus_ids)
    rng = np.random.default_rng(seed)
    rows = [group for group in rows if len(group) > 1]
    if len(rows) < 3:
        raise DataError(
            f"{len(rows)} stimuli were shown more than once; a split-half correlation needs at least 3."
        )
    total = np.zeros(betas.shape[1])
    for _ in range(num_splits):
        halves = np.empty((2, len(rows), betas.shape[1]))
        for i, group in enumerate(rows):
            order = rng.permutation(group)
            middle = (len(group) + int(rng.integers(2))) // 2  # of an odd count the last goes either way
            halves[0, i], halves[1, i] = (
                betas[order[:middle]].mean(axis=0),
                betas[order[middle:]].mean(axis=0),
            )
        total += _correlate(halves[0], halves[1])
    half = total / num_splits
    return half, np.where(half > 0, 2 * half / (1 + half), half)


def ceiling_of_average(ceiling: np.ndarray, repeats: int) -> np.ndarray:
    """Noise ceiling (V,) of an average of `repeats` trials from the single-trial one: s2 / (s2 + n2 / r)."""
    ceiling = np.asarray(ceiling, dtype=np.float64)
    return ceiling * repeats / (1.0 + (repeats - 1) * ceiling)


def _checked(betas: np.ndarray, stimulus_ids: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
    betas = np.asarray(betas, dtype=np.float64)
    if betas.ndim != 2 or len(betas) != len(stimulus_ids):
        raise DataError(
            f"Betas have the shape {betas.shape} for {len(stimulus_ids)} trials; expected (trials, voxels)."
        )
    names, member = np.unique(np.asarray(stimulus_ids, dtype=str), return_inverse=True)
    counts = np.bincount(member, minlength=len(names))
    if len(names) < 2 or counts.max(initial=0) < 2:
        raise DataError(
            f"{len(betas)} trials show {len(names)} stimuli, each at most {counts.max(initial=0)} times; "
            "reliability needs two stimuli and one of them repeated."
        )
    return betas, [np.flatnonzero(member == i) for i in range(len(names))]


def _correlate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson correlation of matching columns (V,), 0 where one does not vary."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    scale = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    return np.divide((a * b).sum(axis=0), scale, out=np.zeros(a.shape[1]), where=scale > 0)
