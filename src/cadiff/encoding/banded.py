"""Kernel ridge from several feature spaces to voxels, penalty and mixture of spaces chosen voxel by voxel.

Banded ridge (Nunez-Elizalde, Huth & Gallant 2019; Dupré la Tour et al. 2022) has one penalty a feature space; here a grid of
mixtures g on the simplex stands for it: K = sum_b g_b K_b with one penalty. With K = U diag(s) U^T, the
predictions for every penalty cost one decomposition.

Letters in shapes: n training pictures, m others, V voxels, B feature spaces, q mixtures, P penalties.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from cadiff.encoding.gram import decompose, parts

PENALTIES = np.logspace(-2.0, 5.0, 8)
"""In units of the kernel's mean eigenvalue; with the largest, nothing but the mean is predicted."""


class Choice(NamedTuple):
    """What each voxel takes."""

    mixture: np.ndarray
    """(V,) row of the mixtures."""
    penalty: np.ndarray
    """(V,) number in `PENALTIES`."""


def mixtures(count: int) -> np.ndarray:
    """Weights (q, B) of B = `count` feature spaces, rows sum to 1: each alone, all alike, and pairs."""
    alone = np.eye(count)
    pairs = [
        share * alone[a] + (1 - share) * alone[b]
        for a, b in combinations(range(count), 2)
        for share in (0.25, 0.5, 0.75)
    ]
    alike = [np.full(count, 1 / count)] if count > 2 else []
    return np.array([*alone, *pairs, *alike])


def mixed(kernels: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """sum_b weights_b K_b; of one kernel alone that kernel itself."""
    used = np.flatnonzero(weights)
    if len(used) == 1 and weights[used[0]] == 1:
        return kernels[used[0]]
    found = weights[used[0]] * kernels[used[0]]
    for b in used[1:]:
        found += weights[b] * kernels[b]
    return found


class KernelRidge:
    """Ridge for all penalties from one decomposition of a kernel that is centred on the training pictures, in float64."""

    def __init__(self, kernel: np.ndarray, inside: np.ndarray) -> None:
        """kernel: (N, N) of all pictures; inside: the n rows to train on."""
        self._inside = inside
        within = kernel[np.ix_(inside, inside)].astype(np.float64)
        self._column = within.mean(axis=0)
        self._mean = float(self._column.mean())
        within -= self._column
        within -= (self._column - self._mean)[:, None]
        values, self._vectors = decompose(within.T, -np.inf)
        self._values = np.maximum(values, 0.0)
        self._unit = max(float(self._values.mean()), 1e-30)
        self._kernel = kernel

    def scores(self, responses: np.ndarray) -> np.ndarray:
        """(n, V) centred responses, rotated."""
        return self._vectors.T @ responses

    def across(self, outside: np.ndarray) -> np.ndarray:
        """Rows (m,) of the kernel, centred and rotated, (m, n): what `predict` takes."""
        part = self._kernel[np.ix_(outside, self._inside)].astype(np.float64)
        part -= part.mean(axis=1, keepdims=True)
        part -= self._column - self._mean
        return part @ self._vectors

    def predict(self, across: np.ndarray, scores: np.ndarray, penalty: float) -> np.ndarray:
        """(m, V) without the mean response."""
        shrunk = across / (self._values + penalty * self._unit)
        return shrunk.astype(scores.dtype) @ scores

    def dual(self, scores: np.ndarray, penalty: float) -> np.ndarray:
        """Coefficients (n, V): predictions are the centred kernel times them; they sum to 0 over pictures."""
        found = self._vectors @ (scores / (self._values + penalty * self._unit)[:, None])
        return found - found.mean(axis=0)  # the constant direction has no eigenvalue to speak of


def fold_errors(
    kernels: Sequence[np.ndarray], responses: np.ndarray, folds: Sequence[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """Squared held-out errors float32 (folds, q, P, V) of every mixture and penalty; folds: (inside, outside)."""
    grid = mixtures(len(kernels))
    errors = np.empty((len(folds), len(grid), len(PENALTIES), responses.shape[1]), np.float32)
    responses = responses.astype(np.float32, copy=False)  # errors of some per mille matter to no choice
    for j, (inside, outside) in enumerate(folds):
        known = responses[inside]
        mean = known.mean(axis=0)
        known -= mean
        truth = responses[outside] - mean
        for q, weights in enumerate(grid):
            ridge = KernelRidge(mixed(kernels, weights), inside)
            scores = np.empty_like(known)
            for part in parts(known.shape[1], len(known)):
                scores[:, part] = ridge.scores(known[:, part])
            across = ridge.across(outside).astype(np.float32)
            for p, penalty in enumerate(PENALTIES):
                missed = ridge.predict(across, scores, penalty)
                missed -= truth
                errors[j, q, p] = np.einsum("mv,mv->v", missed, missed)
    return errors


def choose(errors: np.ndarray) -> Choice:
    """The mixture and the penalty of the smallest error of each voxel; errors (folds, q, P, V)."""
    total = errors.sum(axis=0)
    best = total.reshape(-1, total.shape[-1]).argmin(axis=0)
    return Choice(*np.divmod(best, total.shape[1]))


def held_out(
    kernels: Sequence[np.ndarray],
    responses: np.ndarray,
    inside: np.ndarray,
    outside: np.ndarray,
    choice: Choice,
) -> np.ndarray:
    """Predictions (m, V) for the rows `outside` by a fit on the rows `inside`, of the type of the responses."""
    predicted = np.empty((len(outside), responses.shape[1]), responses.dtype)
    for ridge, pieces in _by_mixture(kernels, inside, choice):
        across = ridge.across(outside)
        for penalty, voxels in pieces:
            known = responses[np.ix_(inside, voxels)].astype(np.float64)
            mean = known.mean(axis=0)
            predicted[:, voxels] = ridge.predict(across, ridge.scores(known - mean), penalty) + mean
    return predicted


def final_dual(
    kernels: Sequence[np.ndarray], responses: np.ndarray, choice: Choice, dtype: type = np.float64
) -> np.ndarray:
    """Coefficients (n, V) of the fit on all pictures; responses (n, V) are centred here."""
    coefficients = np.empty(responses.shape, dtype)
    for ridge, pieces in _by_mixture(kernels, np.arange(len(responses)), choice):
        for penalty, voxels in pieces:
            known = responses[:, voxels].astype(np.float64)
            coefficients[:, voxels] = ridge.dual(ridge.scores(known - known.mean(axis=0)), penalty)
    return coefficients


def _by_mixture(
    kernels: Sequence[np.ndarray], inside: np.ndarray, choice: Choice
) -> Iterator[tuple[KernelRidge, list[tuple[float, np.ndarray]]]]:
    """One ridge for each mixture that a voxel takes, and the penalties with the voxels that take them, not too many at a time."""
    grid = mixtures(len(kernels))
    for q in np.unique(choice.mixture):
        of_voxel = np.where(choice.mixture == q, choice.penalty, -1)
        pieces = [
            (float(PENALTIES[p]), voxels[part])
            for p in np.unique(of_voxel[of_voxel >= 0])
            for voxels in [np.flatnonzero(of_voxel == p)]
            for part in parts(len(voxels), len(inside))
        ]
        yield KernelRidge(mixed(kernels, grid[q]), inside), pieces
