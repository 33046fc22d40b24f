"""Where the spread of a score comes from: subjects, images, seeds. Closed-form analysis of variance. Pure numpy and scipy.

A complete table of S subjects x I images x R samples is split into mean squares; all factors count as random, and the
expected mean square of an effect A (a set of factors) is

    E MS_A = sum over effects B that contain A of  (levels of the factors outside B) * variance_B

(Cornfield & Tukey 1956; Searle, Casella & McCulloch 1992, chapter 4). Solving this triangular system gives the
unbiased method-of-moments variances. Where every subject has its own images, "image" means images within subjects;
where all saw the same, "subject x image" stands apart: the image is easy for this person only. Factors with one
level are left out: with one sample an image nothing can tell its noise from the image, with one subject nothing is known
about people.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from cadiff.errors import DataError
from cadiff.evaluate.hierarchy import ScoreTable

FACTORS: tuple[str, ...] = ("subject", "image", "seed")
Effect = tuple[str, ...]


@dataclass(frozen=True)
class SeedEffect:
    """How far the score, averaged over all images and subjects, moves when only the seed changes."""

    sd: float
    """Deviation of the score of one seed. The mean over R seeds moves by sd / sqrt(R)."""
    low: float
    """95 % interval of that deviation (chi-square): three seeds tell it within a factor of ten or so."""
    high: float
    num_seeds: int


@dataclass(frozen=True)
class VarianceComponents:
    """Variances by effect; "residual" is what no other effect explains, the noise of single samples among it."""

    variances: dict[str, float]
    """Unbiased, so a small one may come out negative: read that as none."""
    shares: dict[str, float]
    """Of the variance of one picture's score; negative variances count as 0; sums to 1 unless all are 0."""
    of_the_mean: dict[str, float]
    """What each adds to the variance of the mean over all: it says whether more images, seeds or subjects would help."""
    another_seed: SeedEffect | None
    """None when there is one sample an image."""
    levels: dict[str, int]
    """How many subjects, images (of each subject) and seeds."""


def variance_components(table: ScoreTable, *, shared_images: bool | None = None) -> VarianceComponents:
    """Splits the variance of scores into subject, image, seed and what they do together.

    A "seed" is whatever `table.samples` names: training seeds, where each gave one score for every image, or the
    samples of one run. When samples are unrelated from image to image their own variance comes out near 0 and
    all of their noise is in the residual; `another_seed` is right either way.

    Args:
        table: complete: every subject with the same number of images, every image with the same samples. Without names
            the samples of an image are numbered in the order of their rows.
        shared_images: whether the same image name in two subjects is one picture. None: if all subjects have the same.

    Raises:
        DataError: rows missing or twice, or only one score in all.
    """
    scores, shared = _complete(table, shared_images)
    levels: dict[str, int] = dict(zip(FACTORS, scores.shape, strict=True))
    factors = [name for name in FACTORS if levels[name] > 1]
    if not factors:
        raise DataError("One score has no variance: components need several subjects, images or seeds.")
    squares = _mean_squares(scores.reshape([levels[name] for name in factors]), factors)
    if not shared and {"subject", "image"} <= set(factors):
        squares = _nest(squares)
    effects = list(squares)
    names = [_label(effect, effects, shared) for effect in effects]
    weights = np.array(
        [[_levels_outside(b, factors, levels) * (set(a) <= set(b)) for b in effects] for a in effects]
    )
    mean_squares = np.array([total / df for total, df in squares.values()])
    found = np.linalg.solve(weights.astype(np.float64), mean_squares)
    positive = np.maximum(found, 0.0)
    everything = max(positive.sum(), np.finfo(float).tiny)
    cells = [int(np.prod([levels[name] for name in effect])) for effect in effects]
    return VarianceComponents(
        dict(zip(names, found.tolist(), strict=True)),
        dict(zip(names, (positive / everything).tolist(), strict=True)),
        dict(zip(names, (positive / cells).tolist(), strict=True)),
        _seed_effect(scores),
        levels,
    )


def _seed_effect(scores: np.ndarray) -> SeedEffect | None:
    num_seeds = scores.shape[2]
    if num_seeds < 2:
        return None
    sd, df = float(scores.mean(axis=(0, 1)).std(ddof=1)), num_seeds - 1
    low, high = (sd * float(np.sqrt(df / stats.chi2.ppf(tail, df))) for tail in (0.975, 0.025))
    return SeedEffect(sd, low, high, num_seeds)


def _complete(table: ScoreTable, shared_images: bool | None) -> tuple[np.ndarray, bool]:
    """Scores (S, I, R), and whether an image's row is the same picture in every subject."""
    subjects, s = np.unique(table.subjects, return_inverse=True)
    of_subject = [np.unique(table.images[s == number]) for number in range(len(subjects))]
    same = all(np.array_equal(of_subject[0], other) for other in of_subject)
    if shared_images and not same:
        raise DataError("Shared images are asked for, but the subjects do not all have the same ones.")
    i = np.empty(len(s), dtype=np.int64)
    for number, names in enumerate(of_subject):
        i[s == number] = np.searchsorted(names, table.images[s == number])
    num_images = max(len(names) for names in of_subject)
    cell = s * num_images + i
    if table.samples is not None:
        seeds, r = np.unique(table.samples, return_inverse=True)
        num_seeds = len(seeds)
    else:
        order = np.argsort(cell, kind="stable")
        _, first, counts = np.unique(cell[order], return_index=True, return_counts=True)
        r = np.empty(len(cell), dtype=np.int64)
        r[order] = np.arange(len(cell)) - np.repeat(first, counts)
        num_seeds = int(r.max()) + 1
    scores = np.full((len(subjects), num_images, num_seeds), np.nan)
    scores[s, i, r] = table.values
    if np.isnan(scores).any() or scores.size != len(cell):
        raise DataError(
            f"Variance components need a complete table: {len(subjects)} subjects x {num_images} images x {num_seeds} "
            f"samples are {scores.size} scores; there are {len(cell)}, for {int((~np.isnan(scores)).sum())} of them."
        )
    return scores, same and shared_images is not False and len(subjects) > 1


def _mean_squares(scores: np.ndarray, factors: list[str]) -> dict[Effect, tuple[float, int]]:
    """Sum of squares and degrees of freedom of every effect of a complete factorial table; the last one is the residual."""
    axes = {name: axis for axis, name in enumerate(factors)}
    sizes = dict(zip(factors, scores.shape, strict=True))
    parts: dict[Effect, np.ndarray] = {(): scores.mean(keepdims=True)}
    found: dict[Effect, tuple[float, int]] = {}
    for order in range(1, len(factors) + 1):
        for effect in combinations(factors, order):
            others = tuple(axes[name] for name in factors if name not in effect)
            smaller = [part for other, part in parts.items() if set(other) < set(effect)]
            parts[effect] = scores.mean(axis=others, keepdims=True) - sum(smaller)
            df = int(np.prod([sizes[name] - 1 for name in effect]))
            repeats = scores.size // parts[effect].size
            found[effect] = (repeats * float((parts[effect] ** 2).sum()), df)
    return found


def _nest(squares: dict[Effect, tuple[float, int]]) -> dict[Effect, tuple[float, int]]:
    """Images within subjects: an image's effect and its interaction with the subject are one."""
    found: dict[Effect, tuple[float, int]] = {}
    for effect, (total, df) in squares.items():
        if "image" in effect and "subject" not in effect:
            effect = ("subject", *effect)
        before, df_before = found.get(effect, (0.0, 0))
        found[effect] = (before + total, df_before + df)
    return dict(sorted(found.items(), key=lambda item: len(item[0])))


def _levels_outside(effect: Effect, factors: list[str], levels: dict[str, int]) -> int:
    return int(np.prod([levels[name] for name in factors if name not in effect]))


def _label(effect: Effect, effects: list[Effect], shared: bool) -> str:
    """What an effect is called in a report."""
    is_last = effect == effects[-1]
    if not shared and effect[:2] == ("subject", "image"):
        effect = effect[1:]
    return "residual" if is_last and len(effect) > 1 else " x ".join(effect)
