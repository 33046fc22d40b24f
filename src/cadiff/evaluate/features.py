"""How alike pictures are to a network's features. Pure numpy and scipy; definitions are frozen (version 1).

    two-way identification   share of wrong stimuli less alike than the own one     higher is better   chance 1/2
    retrieval                own stimulus among the k best of a pool of p           higher is better   chance k/p
    backward retrieval       own picture among the k best for a stimulus, of p      higher is better   chance k/p
    correlation distance     1 - Pearson correlation with the own stimulus          lower is better    by mispairing
    Fréchet distance         between Gaussians fitted to two sets of pictures       lower is better    none
    kernel distance (KID)    squared MMD with a cubic kernel                        lower is better    0 for one distribution
    diversity                1 - correlation between samples of one stimulus        neither            prior-only condition

The first four read a table of similarities `(m, n)`, m pictures by n stimuli, larger is more alike; `correlation_table`
makes it, `cadiff.evaluate.pixel.two_way_identification` is the first. They give one score a picture. The Fréchet and kernel
distances compare sets and give one number, so no interval over images comes with them but that of `kernel_interval`.

Sources: two-way identification and correlation distance as in Scotti et al. 2023 (MindEye) after Ozcelik & VanRullen 2023;
Fréchet distance, Heusel et al. 2017; kernel distance, Bińkowski et al. 2018, with the statistic of Gretton et al. 2012, Eq. 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from cadiff.errors import ConfigError, DataError
from cadiff.evaluate import pixel, semantic

VERSION = 1
POOL_SIZES = (10, 50, 300)


def correlation_table(pictures: np.ndarray | Iterable[np.ndarray], targets: np.ndarray) -> np.ndarray:
    """Pearson correlation of every picture's features with every target's, `(m, n)` float64.

    Args:
        pictures: `(m, D)` or `(m, ...)`, or batches of such, so that large features never lie in memory at once.
        targets: `(n, ...)` with as many features.

    Correlations are summed in single precision (error about 1e-6); a row without spread correlates 0 with everything.
    """
    unit = _unit(targets)
    batches = [pictures] if isinstance(pictures, np.ndarray) else pictures
    rows = []
    for batch in batches:
        x = _unit(batch)
        if x.shape[1] != unit.shape[1]:
            raise DataError(
                f"Pictures have {x.shape[1]} features, targets {unit.shape[1]}: two eyes, or two layers?"
            )
        rows.append((x @ unit.T).astype(np.float64))
    if not rows:
        raise DataError("There are no pictures to correlate with the targets.")
    return np.concatenate(rows)


def correlation_distance(similarity: np.ndarray, own: np.ndarray) -> np.ndarray:
    """1 - correlation of every picture with its own stimulus, `(m,)` in 0..2; 0 is perfect.

    Args:
        similarity: `(m, n)` of `correlation_table`. own: `(m,)`, the column of each picture's stimulus.

    Features that are nowhere negative correlate above 0 for any two photos, so chance is what mispaired pictures score.
    """
    _check_table(similarity, own)
    return 1.0 - similarity[np.arange(len(own)), own]


def retrieval(similarity: np.ndarray, own: np.ndarray, *, pool: int, k: int = 1) -> np.ndarray:
    """Probability that the own stimulus is among the k most alike of a random pool of `pool` stimuli, `(m,)`; chance k/pool.

    The pool holds the own stimulus and `pool - 1` of the others. Published scores draw pools at random (30 times 300 in
    MindEye); this is their expected value, by the hypergeometric distribution (see `cadiff.evaluate.semantic`). Equal
    similarities are broken at random.

    Raises:
        ConfigError: more stimuli in the pool than there are, or k not below it.
    """
    _check_table(similarity, own)
    n = similarity.shape[1]
    if not 1 <= k < pool <= n:
        raise ConfigError(
            f"Retrieval among {pool} with the first {k} counting needs 1 <= k < pool <= {n}, the stimuli that there are."
        )
    return semantic.n_way_top_k(similarity, own, n=pool, k=k)


def retrieval_table(similarity: np.ndarray, *, pool: int, k: int = 1) -> np.ndarray:
    """`retrieval` of every picture for every stimulus that it might belong to: `(m, n)`, arguments as there."""
    n = similarity.shape[1]
    return semantic.success_probability(*_better(similarity, 1), n=pool, k=k, num_classes=n)


def backward_retrieval_table(
    similarity: np.ndarray, *, num_samples: int, pool: int, k: int = 1
) -> np.ndarray:
    """Probability that a picture is among the k most like a stimulus in a random pool of pictures, `(m, n)`; chance k/pool.

    Retrieval of the picture by the stimulus ("image to brain"). The pool holds the picture and those of `pool - 1` other
    stimuli with the same sample number, so that each stimulus is there once.

    Args:
        similarity: `(n num_samples, n)`, the pictures of each stimulus in turn. pool, k: as in `retrieval`.

    Raises:
        DataError: pictures that are not `num_samples` of each stimulus.
    """
    m, n = similarity.shape
    if m != n * num_samples:
        raise DataError(
            f"Backward retrieval needs {num_samples} pictures of each of {n} stimuli; there are {m} pictures."
        )
    above, equal = _better(similarity.reshape(n, num_samples, n), 0)
    found = semantic.success_probability(above, equal, n=pool, k=k, num_classes=n)
    return found.reshape(m, n)


def _better(similarity: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """How many values along an axis are larger than each, and how many others are equal to it."""
    if np.isnan(similarity).any():
        raise DataError("Similarities hold NaN: a picture or the network is broken.")
    lowest, highest = (stats.rankdata(similarity, method, axis=axis) for method in ("min", "max"))
    above = similarity.shape[axis] - highest
    return above.astype(np.int64), (highest - lowest).astype(np.int64)


def pool_sizes(num_stimuli: int, wanted: Sequence[int] = POOL_SIZES) -> tuple[int, ...]:
    """Those of the wanted sizes that the stimuli suffice for, and all stimuli at once, in rising order."""
    return tuple(sorted({size for size in wanted if 2 <= size < num_stimuli} | {num_stimuli}))


@dataclass(frozen=True)
class Frechet:
    """Squared Fréchet distance of two Gaussians, and what to think of it."""

    distance: float
    """`means` + `covariances`."""
    means: float
    """Squared distance of the two mean features."""
    covariances: float
    """tr(S1 + S2 - 2 (S1 S2)^1/2)."""
    num_pictures: int
    num_targets: int
    dimension: int

    @property
    def rank_deficient(self) -> bool:
        """Fewer pictures than features: the covariances have no full rank, the distance mostly tells how few they are."""
        return min(self.num_pictures, self.num_targets) <= self.dimension


def frechet_distance(pictures: np.ndarray, targets: np.ndarray) -> Frechet:
    """Fréchet (2-Wasserstein, squared) distance between Gaussians fitted to features `(m, D)` and `(n, D)`.

    Its expected value falls as the number of pictures grows, even for two samples of one distribution, and by how much
    depends on the generator (Bińkowski et al. 2018; Chong & Forsyth 2020). So it compares only systems with the same
    numbers of pictures, and with a test set of tens or hundreds `kernel_distance` should be read instead. No shrinkage is
    applied: it would add a bias of its own.

    The trace of the root needs no matrix root: for centred features X and Y, tr (S1 S2)^1/2 is the sum of the singular
    values of X Y' / sqrt((m-1)(n-1)), also when the covariances are singular.
    """
    x, y = _rows(pictures, targets)
    means = float(((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum())
    x, y = (x - x.mean(axis=0)) / np.sqrt(len(x) - 1), (y - y.mean(axis=0)) / np.sqrt(len(y) - 1)
    spread = float((x**2).sum() + (y**2).sum())
    if len(x) > x.shape[1]:  # X = Q R and R has the same products
        x = np.asarray(np.linalg.qr(x, mode="r"))
    if len(y) > y.shape[1]:
        y = np.asarray(np.linalg.qr(y, mode="r"))
    covariances = spread - 2.0 * float(np.linalg.svd(x @ y.T, compute_uv=False).sum())
    covariances = max(covariances, 0.0)  # rounding
    return Frechet(means + covariances, means, covariances, len(pictures), len(targets), x.shape[1])


def kernel_distance(pictures: np.ndarray, targets: np.ndarray, own: np.ndarray) -> float:
    """Kernel distance (KID): squared maximum mean discrepancy with the kernel (x'y / D + 1)^3; may fall below 0.

    Args:
        pictures: features `(m, D)`, equally well several a stimulus. targets: `(n, D)`. own: `(m,)`, each picture's stimulus;
            every stimulus needs at least one.

    Unbiased at any number of pictures: two terms of the same stimulus are never multiplied, for a picture depends on
    its own stimulus and on the other samples of it. 0 is expected when pictures and targets have one distribution.
    """
    terms = _kernel_terms(pictures, targets, own)
    return float(terms.sum() / (len(terms) * (len(terms) - 1)))


def kernel_interval(
    pictures: np.ndarray,
    targets: np.ndarray,
    own: np.ndarray,
    *,
    level: float = 0.95,
    num_draws: int = 2_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of `kernel_distance` by resampling stimuli (percentiles); a stimulus drawn twice is not paired with itself.

    Near 0, where the distributions agree, the statistic's spread is of another order and the interval is too wide.
    """
    terms = _kernel_terms(pictures, targets, own)
    n = len(terms)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=num_draws).astype(np.float64)
    pairs = n**2 - (weights**2).sum(axis=1)
    # Of two or three stimuli one may be drawn every time, which leaves no pair.
    weights, pairs = weights[pairs > 0], pairs[pairs > 0]
    draws = np.einsum("di,di->d", weights @ terms, weights) / pairs
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def diversity(samples: np.ndarray) -> np.ndarray:
    """Mean of 1 - correlation over the pairs of samples of each stimulus, `(n,)`; 0: the samples are all alike.

    Args:
        samples: features or pixels, `(n, k, ...)`, at least k = 2 samples of every stimulus.

    Neither high nor low is good: read it against the prior-only condition, see `relative_diversity`.
    """
    if samples.ndim < 3 or samples.shape[1] < 2:
        raise DataError(
            f"Diversity compares samples of one stimulus: expected (stimuli, at least 2 samples, ...), got {samples.shape}."
        )
    n, k = samples.shape[:2]
    # One stimulus at a time: features in double precision are large.
    unit = (pixel.standardise(stack.reshape(k, -1)) for stack in samples)
    twice = np.array([((u.sum(axis=0) ** 2).sum() - (u**2).sum()) for u in unit])  # every pair, both ways
    return 1.0 - twice.reshape(n) / (k * (k - 1))


def relative_diversity(values: np.ndarray, reference: np.ndarray) -> float:
    """Mean diversity as a share of a reference's, best of the prior-only condition: 1 means the brain data narrow nothing.

    0 / 0, a prior that always draws one picture, counts as 1.
    """
    mine, other = float(np.mean(values)), float(np.mean(reference))
    if other <= 1e-12:
        return 1.0 if mine <= 1e-12 else float("inf")
    return mine / other


def _kernel_terms(pictures: np.ndarray, targets: np.ndarray, own: np.ndarray) -> np.ndarray:
    """h(i, j) of Gretton et al. 2012, Eq. 4, with a stimulus and the mean over its pictures as z_i; (n, n), diagonal 0."""
    x, y = _rows(pictures, targets)
    own = np.asarray(own)
    n = len(y)
    counts = np.bincount(own, minlength=n)
    if len(own) != len(x) or len(counts) != n or counts.min() == 0:
        raise DataError(
            f"The kernel distance needs the stimulus of each of {len(x)} pictures and a picture of each of {n} stimuli."
        )
    mean = np.zeros((n, len(x)))
    mean[own, np.arange(len(x))] = 1.0 / counts[own]
    cross = mean @ _kernel(x, y)
    terms = mean @ _kernel(x, x) @ mean.T + _kernel(y, y) - cross - cross.T
    np.fill_diagonal(terms, 0.0)
    return terms


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def _rows(pictures: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if pictures.ndim != 2 or targets.ndim != 2 or pictures.shape[1] != targets.shape[1]:
        raise DataError(
            f"Features of pictures {pictures.shape} and targets {targets.shape}: expected (m, D) and (n, D)."
        )
    if min(len(pictures), len(targets)) < 2:
        raise DataError("A distance between distributions needs at least two pictures and two targets.")
    x, y = np.asarray(pictures, np.float64), np.asarray(targets, np.float64)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataError("Features hold values that are not finite: the pictures or the network are broken.")
    return x, y


def _unit(features: np.ndarray) -> np.ndarray:
    """`pixel.standardise` in single precision, a few rows at a time."""
    rows = np.asarray(features).reshape(len(features), -1)
    if not np.isfinite(rows).all():
        row = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise DataError(
            f"The features of picture {row} are not finite: the picture or the network is broken."
        )
    unit = np.empty(rows.shape, np.float32)
    for start in range(0, len(rows), 64):
        unit[start : start + 64] = pixel.standardise(rows[start : start + 64])
    return unit


def _check_table(similarity: np.ndarray, own: np.ndarray) -> None:
    if similarity.ndim != 2 or len(own) != len(similarity):
        raise DataError(f"Similarities {similarity.shape} and {len(own)} own stimuli: expected (m, n) and m.")
    if np.isnan(similarity).any():
        row = int(np.flatnonzero(np.isnan(similarity).any(axis=1))[0])
        raise DataError(f"The similarities of picture {row} hold NaN: the picture or the network is broken.")
