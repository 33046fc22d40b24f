"""What a linear read-out finds in a representation: ridge regression onto components of the stimulus.

A representation may be far wider than there are trials (tokens: ten thousands of numbers for a thousand trials), and ridge sees
it by inner products alone. So it is first rotated onto the span of the training trials, X - mean = U S V^T -> U S, by one Gram
matrix. This is exact, also for other trials (Hastie & Tibshirani 2004, Biostatistics 5:329), and folds then cost the same at
any width.

Letters in shapes: n training trials, m other trials, D numbers of the representation, C components, r rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cadiff.encoding.ridge import RidgeFit, fit_ridge

CHUNK = 2048  # columns in float64 at a time: tokens of a full-size encoder fill memory once already
TINY = 1e-12  # relative squared singular values below it are rounding, as in `RidgePath`


def rotate(train: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """(n, D) and (m, D) -> (n, r) and (m, r) float64, on the principal axes of `train`, its mean at 0.

    What is no wider than there are trials is only centred. A wider representation that is the same for all training trials
    becomes one column of zeros.
    """
    if train.shape[1] <= len(train):
        mean = train.double().mean(0)
        return train.double() - mean, other.double() - mean
    gram = torch.zeros(len(train), len(train), dtype=torch.float64)
    cross = torch.zeros(len(other), len(train), dtype=torch.float64)
    for x, y in zip(train.split(CHUNK, 1), other.split(CHUNK, 1), strict=True):
        mean = x.double().mean(0)
        x, y = x.double() - mean, y.double() - mean
        gram.addmm_(x, x.T)
        cross.addmm_(y, x.T)
    squares, left = torch.linalg.eigh(gram)
    keep = squares > squares[-1].clamp_min(1e-300) * TINY
    if not keep.any():
        return gram.new_zeros(len(train), 1), gram.new_zeros(len(other), 1)
    sizes, left = squares[keep].sqrt(), left[:, keep]
    return left * sizes, cross @ left / sizes


def probe(
    train: Tensor, other: Tensor, targets: Tensor, groups: Sequence[str], *, seed: int = 0
) -> tuple[Tensor, RidgeFit]:
    """Reads `targets` out of a representation.

    Args:
        train: (n, D) of the training trials. other: (m, D) of trials to predict; none are needed.
        targets: (n, C). groups: (n,) the stimulus of each training trial: trials of one are held out together.
        seed: of the folds.

    Returns:
        Predictions (m, C) for the other trials, and the fit on the rotated representation, whose `held_out` (n, C) are the
        predictions of each training trial by a fit that never saw its stimulus. Every component has its own penalty, so it
        does not matter how components are scaled against each other.
    """
    inside, outside = rotate(train, other)
    fit = fit_ridge(inside, targets, groups, score="r2", per_target=True, seed=seed)
    return outside @ fit.weight.double() + fit.bias.double(), fit
