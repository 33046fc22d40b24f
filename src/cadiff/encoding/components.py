"""Ridge from betas to principal components of what the stimuli look like, one row a stimulus instead of one a trial.

The components are those of the trials' targets, so a stimulus counts as often as it was shown: trials are the rows of the
regression too, and no other k directions keep as much of what it is to explain. With equal repeats they are those of the stimuli.
With C the trials of each of u stimuli and X their targets (u, D), they are the eigenvectors of (X - m)^T C (X - m); these come
from the smaller of that matrix and of C^1/2 (X - m) (X - m)^T C^1/2 (Turk & Pentland 1991, J. Cognitive Neuroscience 3:71,
eq. 6), which is summed over slices of X, so that nothing of X's size is ever in memory in float64.

Letters in shapes: n trials, V voxels, u stimuli, D numbers of a target, k components.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cadiff.encoding.ridge import RidgeFit, fit_ridge
from cadiff.errors import DataError

SLICE = 1 << 23
"""Numbers of X that are in float64 at a time."""
TINY = 1e-12
"""Squared singular values below this share of the largest are rounding."""


class LowRank(NamedTuple):
    """targets = betas @ weight @ components + bias, float32."""

    weight: Tensor
    """(V, k)."""
    components: Tensor
    """(k, D)."""
    bias: Tensor
    """(D,)."""
    mean: Tensor
    """(D,): of the trials' targets."""


def fit_components(
    betas: Tensor,
    targets: np.ndarray,
    ids: Sequence[str],
    which: Tensor | None = None,
    *,
    scale: float = 1.0,
    num_components: int | None = None,
    seed: int = 0,
    per_target: bool = False,
) -> tuple[LowRank, RidgeFit]:
    """Fits ridge from betas to the components of `targets[which] * scale`, without a copy for every trial.

    Args:
        betas: (n, V) preprocessed betas.
        targets: (u, ...) of the distinct stimuli, of any type; of the trials (n, ...) without `which`.
        ids: (n,) the stimulus of each trial. which: (n,) its row of `targets`.
        scale: factor of the targets.
        num_components: k; all when absent. Those without any variance are left out.
        seed, per_target: see `fit_ridge`.

    Raises:
        DataError: one stimulus, or targets that are all the same.
    """
    which = torch.arange(len(targets)) if which is None else which
    flat = targets.reshape(len(targets), -1)
    shown = torch.bincount(which, minlength=len(flat)).double().numpy()
    mean = np.empty(flat.shape[1])
    for part in _slices(flat):
        mean[part] = shown @ (flat[:, part].astype(np.float64) * scale) / shown.sum()
    root = np.sqrt(shown)[:, None]

    def weighed(part: slice) -> np.ndarray:
        return root * (flat[:, part].astype(np.float64) * scale - mean[part])

    few = len(flat) <= flat.shape[1]
    if few:
        gram = np.zeros((len(flat), len(flat)))
        for part in _slices(flat):
            piece = weighed(part)
            gram += piece @ piece.T
    else:
        whole = weighed(slice(None))
        gram = whole.T @ whole
    squares, vectors = np.linalg.eigh(gram)
    order = np.argsort(squares)[::-1][: num_components or None]
    order = order[squares[order] > TINY * max(squares[-1], TINY)]
    if not len(order) and len(set(ids)) > 1:
        raise DataError("All training pictures are the same: ridge regression has nothing to tell apart.")
    lengths, vectors = np.sqrt(squares[order]), vectors[:, order]
    del gram
    scores = vectors * lengths if few else weighed(slice(None)) @ vectors
    ridge = fit_ridge(
        betas, torch.from_numpy(scores / root)[which], ids, score="r2", seed=seed, per_target=per_target
    )
    offset = ridge.bias.double().numpy()
    components = np.empty((len(order), flat.shape[1]), np.float32)
    bias = np.empty(flat.shape[1], np.float32)
    for part in _slices(flat):
        exact = (vectors / lengths).T @ weighed(part) if few else vectors.T[:, part]
        components[:, part] = exact
        bias[part] = mean[part] + offset @ exact
    learnt = (components, bias, mean.astype(np.float32))
    return LowRank(ridge.weight, *(torch.from_numpy(array) for array in learnt)), ridge


def _slices(flat: np.ndarray) -> Iterator[slice]:
    """Columns (u, D) in pieces of `SLICE` numbers."""
    width = max(1, SLICE // len(flat))
    return (slice(start, start + width) for start in range(0, flat.shape[1], width))
