"""n-way top-k: does a judge find the stimulus's class in the reconstruction? Pure numpy and scipy.

Sun et al. 2023 (CAD), Algorithm 1; Chen et al. 2023 (MinD-Vis). The truth c is the judge's own arg-max on the
stimulus. One trial draws n - 1 distractor classes out of all the others and succeeds when c ranks among the
first k of those n by the judge's score on the reconstruction. The papers repeat 1,000 such trials; the
expected value needs none:

    P = sum_{i<k} C(r, i) C(N-1-r, n-1-i) / C(N-1, n-1),    r = number of classes scored above c, N classes in
    all,

the hypergeometric probability that at most k - 1 of the r better classes are drawn. It is exact and has no
seed. Chance, for scores that know nothing, is k/n.

Ties (equal scores; real networks make none, constant or broken scores do) are broken at random: P is averaged
over the t + 1 ranks that c may take among the t classes equal to it, so constant scores give k/n. The
published code lets c win every tie (`ties="truth"`), which scores a constant output 100 %.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from scipy.stats import hypergeom

from cadiff.errors import ConfigError, DataError

Ties = Literal["random", "truth"]


def truth_classes(stimulus_scores: np.ndarray, classes: np.ndarray | None = None) -> np.ndarray:
    """The judge's arg-max on each stimulus `(n,)`, as an index into all classes.

    Args:
        stimulus_scores: `(n, C)` logits or probabilities.
        classes: only these classes take part (also as truth); default all.
    """
    _check_scores(stimulus_scores)
    allowed = _allowed(stimulus_scores.shape[1], classes)
    return allowed[stimulus_scores[:, allowed].argmax(axis=1)]


def n_way_top_k(
    scores: np.ndarray,
    truth: np.ndarray,
    *,
    n: int = 50,
    k: int = 1,
    classes: np.ndarray | None = None,
    ties: Ties = "random",
) -> np.ndarray:
    """Exact success probability of every reconstruction, `(m,)` in 0..1.

    Args:
        scores: `(m, C)`, the judge's logits or probabilities on the reconstructions; only their order
            matters. truth: `(m,)`, class of each reconstruction's stimulus. n: classes in a trial, the truth
            among them. k: ranks that count as success. classes: only these take part as distractors; must
            contain every truth. Default all. ties: see the head of this module.

    Raises:
        ConfigError: k and n do not fit the number of classes.
        DataError: scores that are NaN, or a truth outside `classes`.
    """
    own, among = _split(scores, truth, classes)
    _check_counts(n, k, among.shape[1])
    above = np.count_nonzero(among > own, axis=1)  # r
    equal = np.zeros_like(above)  # t
    if ties == "random":
        equal = np.count_nonzero(among == own, axis=1) - 1  # the truth equals itself
    return success_probability(above, equal, n=n, k=k, num_classes=among.shape[1])


def success_probability(
    above: np.ndarray, equal: np.ndarray, *, n: int, k: int, num_classes: int
) -> np.ndarray:
    """P of the head of this module for integer arrays of one shape: classes `above` the truth, and others `equal` to it.

    Raises `ConfigError` where k and n do not fit the number of classes.
    """
    _check_counts(n, k, num_classes)
    table, total = _probabilities(n, k, num_classes)
    averaged = (total[above + equal + 1] - total[above]) / (equal + 1)
    # The running sum costs digits; without ties the table itself is meant.
    return np.where(equal == 0, table[above], averaged)


@lru_cache(maxsize=64)
def _probabilities(n: int, k: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """P for every r, and its running sum from 0."""
    table = hypergeom.cdf(k - 1, num_classes - 1, np.arange(num_classes), n - 1)
    return table, np.concatenate([[0.0], np.cumsum(table)])


def n_way_top_k_monte_carlo(
    scores: np.ndarray,
    truth: np.ndarray,
    generator: np.random.Generator,
    *,
    n: int = 50,
    k: int = 1,
    num_trials: int = 1000,
    classes: np.ndarray | None = None,
    ties: Ties = "random",
) -> np.ndarray:
    """Algorithm 1 as printed, its "arg-min" read as arg-max: share of successes in `num_trials` draws,
    `(m,)`.

    For comparison with published numbers only; `n_way_top_k` is what it estimates.
    """
    own, among = _split(scores, truth, classes)
    _check_counts(n, k, among.shape[1])
    is_other = np.ones(among.shape, dtype=bool)
    is_other[np.arange(len(among)), _columns(scores.shape[1], truth, classes)] = False
    others = among[is_other].reshape(len(among), -1)
    better, equal = others > own, others == own
    successes = np.zeros(len(scores))
    for _ in range(num_trials):
        drawn = generator.permuted(np.broadcast_to(np.arange(others.shape[1]), others.shape), axis=1)[
            :, : n - 1
        ]
        ahead = np.take_along_axis(better, drawn, axis=1).sum(axis=1)
        if ties == "random":
            ahead = ahead + generator.integers(0, np.take_along_axis(equal, drawn, axis=1).sum(axis=1) + 1)
        successes += ahead < k
    return successes / num_trials


def _split(
    scores: np.ndarray, truth: np.ndarray, classes: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The truth's score `(m, 1)` and the scores of all N classes that take part `(m, N)`, the truth among them."""
    _check_scores(scores)
    columns = _columns(scores.shape[1], truth, classes)
    among = scores if classes is None else scores[:, _allowed(scores.shape[1], classes)]
    return among[np.arange(len(among)), columns][:, None], among


def _columns(num_classes: int, truth: np.ndarray, classes: np.ndarray | None) -> np.ndarray:
    """Where each truth stands among the classes that take part, `(m,)`."""
    allowed, wanted = _allowed(num_classes, classes), np.asarray(truth, dtype=int)
    columns = np.searchsorted(allowed, wanted)
    known = allowed[np.minimum(columns, len(allowed) - 1)] == wanted
    if not known.all():
        raise DataError(
            f"The true class {wanted[~known][0]} is not among the {len(allowed)} classes that take part."
        )
    return columns


def _allowed(num_classes: int, classes: np.ndarray | None) -> np.ndarray:
    if classes is None:
        return np.arange(num_classes)
    allowed = np.unique(np.asarray(classes, dtype=int))
    if len(allowed) == 0 or allowed[0] < 0 or allowed[-1] >= num_classes:
        raise ConfigError(
            f"The class restriction must list classes 0 to {num_classes - 1}; it is {list(allowed)[:5]}."
        )
    return allowed


def _check_scores(scores: np.ndarray) -> None:
    if scores.ndim != 2:
        raise DataError(f"Scores must be (pictures, classes); they are {scores.shape}.")
    if np.isnan(scores).any():
        row = int(np.flatnonzero(np.isnan(scores).any(axis=1))[0])
        raise DataError(f"The judge's scores of picture {row} hold NaN: the picture or the judge is broken.")


def _check_counts(n: int, k: int, num_classes: int) -> None:
    if not 1 <= k < n <= num_classes:
        raise ConfigError(f"{n}-way top-{k} needs 1 <= k < n <= {num_classes} classes that take part.")
