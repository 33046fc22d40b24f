"""Do betas follow the pictures: kernel ridge from features to voxels, and how often a shuffled order does as well.

Held-out predictions of ridge regression are linear in the responses, P = H Y, and H depends on features and folds alone.
With G = Y Y^T, the correlation of predictions and responses, pooled over trials and voxels, is

    r = <H, G> / sqrt(<H^T H, G> trace G)

so that a permutation of the assignment of responses to pictures only reorders G, and costs no fit.

Letters in shapes: m stimuli, v voxels, t test stimuli, q predictors (a feature set with a penalty).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

PENALTIES = (0.1, 1.0, 10.0)  # ridge penalties, in units of the kernel's mean eigenvalue
NUM_FOLDS = 10


class Outcome(NamedTuple):
    """A correlation against its permutations."""

    r: float
    """Pooled correlation of held-out predictions and responses, of the best predictor."""
    z: float
    """How many standard deviations of shuffled orders it lies above their mean."""
    p: float
    """Share of shuffled orders that reach it, the best predictor chosen for each of them too."""
    best: str
    """Feature set of the best predictor."""
    chosen: int
    """Its number among the predictors."""
    null_mean: np.ndarray
    null_sd: np.ndarray
    """(q,) of each predictor's r over shuffled orders."""


@dataclass(frozen=True, eq=False)
class Predictor:
    """Held-out predictions as a matrix: P = hat @ Y."""

    name: str
    penalty: float
    hat: np.ndarray
    """(m, m)"""
    square: np.ndarray
    """hat^T hat, (m, m)"""

    def correlation(self, gram: np.ndarray) -> float:
        """r of responses with Y Y^T = gram (m, m)."""
        size = float(np.vdot(self.square, gram)) * float(np.trace(gram))
        return float(np.vdot(self.hat, gram)) / max(size, 1e-30) ** 0.5


def kernel(features: np.ndarray) -> np.ndarray:
    """Linear kernel (m, m) of standardised features (m, F), centred, with mean diagonal 1."""
    features = features.reshape(len(features), -1).astype(np.float32)
    features = features - features.mean(axis=0)
    spread = features.std(axis=0)
    features = features[:, spread > 1e-3 * max(float(spread.max(initial=0)), 1e-12)]
    if not features.shape[1]:
        return np.zeros((len(features), len(features)), np.float32)
    features /= features.std(axis=0)
    matrix = features @ features.T
    return matrix / max(float(np.trace(matrix)) / len(matrix), 1e-12)


def folds(m: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Held-out rows of each fold."""
    return [np.sort(part) for part in np.array_split(rng.permutation(m), min(NUM_FOLDS, m))]


def predictors(
    kernels: Mapping[str, np.ndarray], held_out: Sequence[np.ndarray], penalties: Sequence[float] = PENALTIES
) -> list[Predictor]:
    """All feature sets with all penalties; kernels (m, m) by name."""
    found = []
    for name, matrix in kernels.items():
        for penalty in penalties:
            hat = np.zeros_like(matrix)
            for part in held_out:
                rest = np.setdiff1d(np.arange(len(matrix)), part)
                hat[np.ix_(part, rest)] = weights(
                    matrix[np.ix_(rest, rest)], matrix[np.ix_(part, rest)], penalty
                )
            found.append(Predictor(name, penalty, hat, hat.T @ hat))
    return found


def weights(within: np.ndarray, across: np.ndarray, penalty: float) -> np.ndarray:
    """What training responses (m, v) are multiplied with to predict others, (t, m): kernel ridge on centred responses.

    within: kernel (m, m) of training stimuli; across: (t, m) of others with them.
    """
    scale = penalty * max(float(np.trace(within)) / len(within), 1e-12)
    found = np.linalg.solve(within + scale * np.eye(len(within), dtype=within.dtype), across.T).T
    return found - found.mean(axis=1, keepdims=True)


def order_outcome(
    found: Sequence[Predictor], responses: np.ndarray, rng: np.random.Generator, num_permutations: int
) -> Outcome:
    """Whether the order of responses (m, v) fits the predictors better than shuffled orders."""
    gram = responses @ responses.T
    null = np.empty((num_permutations + 1, len(found)))
    for i in range(num_permutations + 1):
        order = rng.permutation(len(gram)) if i else np.arange(len(gram))
        shuffled = gram[np.ix_(order, order)]
        null[i] = [predictor.correlation(shuffled) for predictor in found]
    return judge(null, [predictor.name for predictor in found])


def judge(values: np.ndarray, names: Sequence[str]) -> Outcome:
    """The outcome of correlations (1 + permutations, q), the first row as it is, the others shuffled.

    Predictors are put on a common scale (z over shuffled orders) before the best is chosen, in every row.
    """
    mean, sd = values[1:].mean(axis=0), np.maximum(values[1:].std(axis=0), 1e-12)
    z = (values[0] - mean) / sd
    best = int(z.argmax())
    # For p every row is treated alike, the first included, so that it is exact under exchangeability.
    alike = ((values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-12)).max(axis=1)
    p = float((alike >= alike[0]).mean())
    return Outcome(float(values[0, best]), float(z[best]), p, names[best], best, mean, sd)


def expected_z(
    predictor: Predictor,
    matrix: np.ndarray,
    shares: np.ndarray,
    null_mean: float,
    null_sd: float,
    rng: np.random.Generator,
    draws: int = 3,
) -> float:
    """The z that a right order would reach if features explained these shares (v,) of the voxels' variance.

    Responses are simulated as what ridge regression assumes, linear in the features (kernel (m, m)), with noise that is
    independent in every voxel; how far shuffled orders scatter is taken from the data (null_mean, null_sd). The mean of
    `draws`.
    """
    m, v = len(matrix), len(shares)
    root = np.linalg.cholesky(matrix + 1e-3 * np.eye(m, dtype=matrix.dtype))
    found = []
    for _ in range(draws):
        signal = _standardised(root @ rng.standard_normal((m, v)))
        responses = np.sqrt(shares) * signal + np.sqrt(1 - shares) * _standardised(
            rng.standard_normal((m, v))
        )
        found.append(predictor.correlation(responses @ responses.T))
    return (float(np.mean(found)) - null_mean) / max(null_sd, 1e-12)


def transfer_outcome(
    predicted: np.ndarray, responses: np.ndarray, rng: np.random.Generator, num_permutations: int
) -> Outcome:
    """Whether responses (t, v) follow predictions (t, v) from other trials better than shuffled ones."""
    predicted, responses = predicted - predicted.mean(axis=0), responses - responses.mean(axis=0)
    scale = float(np.linalg.norm(predicted) * np.linalg.norm(responses))
    matches = predicted @ responses.T / max(scale, 1e-30)
    rows = np.arange(len(matches))
    orders = [rows, *(rng.permutation(len(rows)) for _ in range(num_permutations))]
    values = np.array([[matches[rows, order].sum()] for order in orders])
    return judge(values, ["transfer"])


def _standardised(values: np.ndarray) -> np.ndarray:
    values = values - values.mean(axis=0)
    return values / np.maximum(values.std(axis=0), 1e-12)
