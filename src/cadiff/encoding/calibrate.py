"""What is measured on trials whose stimulus no fit has seen: residuals, r2, share of misfit, temperature.

Two rings. `measure` cross-validates inside the stimuli it is given: penalties, residuals, noise covariance, voxels to read.
`calibrate` does all of that again without a held-out part and looks at how likely the held-out stimuli's own pictures
are then: that is where the temperature comes from. One ring is not enough: residuals of the other folds were predicted by fits
that had seen the fold in question, and with more voxels than trials their covariance knows its noise. On pure noise a
one-ring calibration tells 9 of 10 pairs apart, and any choice made with its temperature looks certain.

Letters in shapes: n stimuli, t trials, V voxels, k candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax

from cadiff.data.splits import k_folds
from cadiff.encoding.banded import Choice, choose, fold_errors, held_out
from cadiff.encoding.gram import Table, parts
from cadiff.encoding.noise import NoiseCovariance
from cadiff.encoding.responses import Residuals, Responses

HOTTEST = 1.0
"""A model is never taken to be surer than it says: where held-out stimuli are told apart without fail, any factor would do."""
TRIED = np.logspace(-3.0, 0.0, 31)
"""Temperatures of posterior means."""
ENOUGH = 100
"""Held-out stimuli after which the outer ring stops: their number sets the precision, each fold costs a whole fit."""
SLICE = 1 << 23
"""Pixels that are in float64 at a time."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Held-out quantities of an encoding model."""

    choice: Choice
    """Mixture and penalty of each voxel."""
    r2: np.ndarray
    """(V,) share of the variance of stimulus means that held-out predictions explain."""
    voxels: np.ndarray
    """(V,) bool: those that the likelihood reads."""
    noise: NoiseCovariance
    """Of single trials, of the voxels read."""
    misfit: float
    """Share of the residual variance that averaging repeats does not lower: what the features lack."""


@dataclass(frozen=True)
class Calibration:
    """How the likelihood of held-out stimuli behaves."""

    temperature: float
    """Factor of the log likelihood under which their own pictures are most probable among candidates."""
    mean_temperature: float | None
    """Factor under which the posterior mean of the further pictures is nearest to the own one; None without such pictures.
    A likelihood whose covariance is known from few trials is far off for some of them; that weighs on probabilities, and
    less on means."""
    top_1: float
    two_way: float
    """How often the own picture is the likeliest; and likelier than another candidate."""
    num_candidates: float
    """Mean number of candidates."""
    num_stimuli: int
    """Stimuli held out."""


def measure(
    kernels: Sequence[np.ndarray],
    responses: Responses,
    *,
    within: np.ndarray | None,
    min_r2: float | None,
    num_folds: int,
    seed: int,
) -> Measured:
    """Cross-validates an encoding model.

    Args:
        kernels: (n, n) of each feature space.
        responses: of the n stimuli.
        within: (V,) noise variance of single trials, where it is known.
        min_r2: read only voxels above this; all when absent.
        num_folds: by stimulus, drawn by `seed`.
    """
    n = len(responses.means)
    folds = k_folds([str(i) for i in range(n)], min(num_folds, n), seed)
    errors = fold_errors(kernels, responses.means, folds)
    predicted = np.empty_like(responses.means)
    for j, (inside, outside) in enumerate(folds):
        others = choose(np.delete(errors, j, axis=0))
        predicted[outside] = held_out(kernels, responses.means, inside, outside, others)
    r2 = r_squared(responses.means, predicted)
    every = np.arange(len(r2))
    voxels = np.ones(len(r2), dtype=bool)
    if min_r2 is not None:
        voxels = r2 > min_r2
        voxels[r2.argmax()] = True  # one at least
    return Measured(
        choose(errors),
        r2,
        voxels,
        NoiseCovariance.fit(Residuals(responses, predicted, every[voxels])),
        misfit_share(Residuals(responses, predicted, every), responses, within),
    )


def calibrate(
    kernels: Sequence[np.ndarray],
    responses: Responses,
    pictures: Callable[[np.ndarray], np.ndarray],
    others: np.ndarray | None = None,
    *,
    within: np.ndarray | None,
    min_r2: float | None,
    num_folds: int,
    seed: int,
) -> Calibration:
    """The temperature, from stimuli that neither fit nor noise covariance have seen.

    Arguments as in `measure`; kernels are (n + d, n) here: the last d pictures are further candidates, shown in no trial.
    pictures: stimuli (m,) -> theirs, uint8 (m, ...); asked only where there are others.
    others: uint8 (d, ...), the further candidates; none when absent.
    """
    n, further = len(responses.means), np.arange(len(responses.means), len(kernels[0]))
    scores: list[tuple[np.ndarray, np.ndarray]] = []
    errors = np.zeros(len(TRIED))
    for inside, outside in k_folds([str(i) for i in range(n)], min(num_folds, n), seed + 1):
        part = [kernel[np.ix_(inside, inside)] for kernel in kernels]
        known = responses.only(inside)
        found = measure(part, known, within=within, min_r2=min_r2, num_folds=num_folds, seed=seed)
        candidates = np.concatenate([outside, further])
        predicted = held_out(kernels, responses.means, inside, candidates, found.choice)
        seen = responses.means[np.ix_(outside, found.voxels)]
        distances = found.noise.squared_distances(seen, predicted[:, found.voxels])
        every = -0.5 * distances / spread(responses.repeats[outside], found.misfit)[:, None]
        scores.append((np.diag(every)[:, None], every))
        if others is not None:
            errors += mean_errors(every[:, len(outside) :], others, pictures(outside))
        if sum(len(own) for own, _ in scores) >= ENOUGH:
            break
    wins = [(every < own).sum(axis=1) / max(every.shape[1] - 1, 1) for own, every in scores]
    beaten = [(every > own).sum(axis=1) for own, every in scores]
    return Calibration(
        temperature=fit_temperature(scores),
        mean_temperature=None if others is None else float(TRIED[errors.argmin()]),
        top_1=float((np.concatenate(beaten) == 0).mean()),
        two_way=float(np.concatenate(wins).mean()),
        num_candidates=float(np.mean([every.shape[1] for own, every in scores for _ in own])),
        num_stimuli=sum(len(own) for own, _ in scores),
    )


def fit_temperature(scores: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """The factor T in 0..`HOTTEST` that makes the own picture most probable, sum log softmax(T scores)[own]; concave in T.

    scores: for each group of stimuli their own (m, 1) and all candidates' (m, k) log likelihoods.
    """

    def cost(t: float) -> float:
        return -sum(
            float((t * own - np.asarray(logsumexp(t * every, axis=1, keepdims=True))).sum())
            for own, every in scores
        )

    found = minimize_scalar(cost, bounds=(0.0, HOTTEST), method="bounded", options={"xatol": 1e-6})
    # a bounded search stops short of its ends; without any gain there is nothing to be told
    return float(found.x) if found.fun < cost(0.0) - 1e-9 else 0.0


def mean_errors(scores: np.ndarray, candidates: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Squared errors of posterior means at every temperature `TRIED`, summed over stimuli, pixels in 0..1.

    |w C - o|^2 = w C C^T w^T - 2 w C o^T + o o^T: the products are summed over slices of pixels, exactly, since pixels are whole
    numbers, and serve every temperature.

    scores: (m, k) log likelihoods. candidates: uint8 (k, ...) pictures. own: uint8 (m, ...).
    """
    flat, shown = (pictures.reshape(len(pictures), -1) for pictures in (candidates, own))
    among, across = np.zeros((len(flat), len(flat))), np.zeros((len(shown), len(flat)))
    length = 0.0
    width = max(1, SLICE // (len(flat) + len(shown)))
    for start in range(0, flat.shape[1], width):
        some, mine = (part[:, start : start + width].astype(np.float64) for part in (flat, shown))
        among += some @ some.T
        across += mine @ some.T
        length += float((mine**2).sum())
    weights = [softmax(t * scores, axis=1) for t in TRIED]
    errors = [float(((w @ among) * w).sum() - 2 * (across * w).sum()) + length for w in weights]
    return np.array(errors) / 255.0**2


def spread(repeats: np.ndarray, misfit: float) -> np.ndarray:
    """Variance of an average of so many repeats as a share of a single trial's, (m,): noise shrinks, misfit stays."""
    return misfit + (1.0 - misfit) / np.asarray(repeats, dtype=np.float64)


def misfit_share(residuals: Table, responses: Responses, within: np.ndarray | None) -> float:
    """1 - noise / residual variance, mean over voxels, in 0..1.

    Noise is measured between trials of the same stimulus where there are such, else taken from `within` (V,); where neither
    tells, the answer is 0: everything that is missed counts as noise.
    """
    freedom = int((responses.repeats - 1).sum())
    if freedom > 0:
        within = _mean_squares(Residuals(responses, responses.means, np.arange(residuals.shape[1]))) * (
            len(responses.of_trial) / freedom
        )
    if within is None:
        return 0.0
    missed = _mean_squares(residuals)
    alive = missed > 1e-12
    return float(np.clip(1.0 - (within[alive] / missed[alive]).mean(), 0.0, 1.0)) if alive.any() else 0.0


def r_squared(responses: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """(V,) of responses (n, V); 0 for a voxel that never changes."""
    r2 = np.empty(responses.shape[1])
    for part in parts(*responses.shape[::-1]):
        some = responses[:, part].astype(np.float64)
        total = ((some - some.mean(axis=0)) ** 2).sum(axis=0)
        missed = ((some - predicted[:, part]) ** 2).sum(axis=0)
        r2[part] = np.where(total > 1e-12, 1.0 - missed / np.maximum(total, 1e-12), 0.0)
    return r2


def _mean_squares(table: Table) -> np.ndarray:
    """(V,) of a table (t, V)."""
    found = np.empty(table.shape[1])
    for part in parts(*table.shape[::-1]):
        some = np.asarray(table[:, part], dtype=np.float64)
        found[part] = np.einsum("tv,tv->v", some, some) / len(some)
    return found
