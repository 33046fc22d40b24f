"""Ridge regression with a penalty chosen by cross-validation, folds grouped by stimulus. The one that all rooms use.

    weight, bias = argmin ||x weight + bias - y||^2 + penalty ||weight||^2, the bias unpenalised

Letters in shapes: n trials, V voxels (or whatever predicts), C targets, P penalties, r rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cadiff.data.splits import k_folds
from cadiff.encoding import gram as grams
from cadiff.encoding.gram import parts
from cadiff.errors import DataError

PENALTIES = torch.logspace(-3, 3, 19, dtype=torch.float64)
"""Ridge penalties tried, as multiples of the mean squared singular value of the betas."""


@dataclass(frozen=True)
class RidgeFit:
    """A ridge regression whose penalty was chosen by cross-validation."""

    weight: Tensor
    """(V, C) float32."""
    bias: Tensor
    """(C,) float32."""
    penalty: float
    """The penalty chosen, as a multiple of the mean squared singular value."""
    score: float
    """Score of the held-out predictions with that penalty."""
    held_out: Tensor
    """(n, C) float32: each trial predicted by a fit that never saw its stimulus."""
    penalties: Tensor | None = None
    """(C,) float64 where every target has its own; `penalty` is then their median."""

    def facts(self) -> dict[str, Any]:
        """Penalty and held-out score as JSON values, for a provenance."""
        found: dict[str, Any] = {"penalty": self.penalty, "held_out_score": self.score}
        if self.penalties is not None:
            tried, counts = self.penalties.unique(return_counts=True)
            found["targets_of_penalty"] = {f"{p:.3g}": int(n) for p, n in zip(tried, counts, strict=True)}
        return found


def fit_ridge(
    betas: Tensor,
    targets: Tensor,
    groups: Sequence[str],
    *,
    score: Literal["cosine", "r2"],
    hold_out: Sequence[str] | None = None,
    num_folds: int = 5,
    seed: int = 0,
    per_target: bool = False,
) -> RidgeFit:
    """weight, bias = argmin ||betas @ weight + bias - targets||^2 + penalty ||weight||^2, the bias unpenalised.

    Args:
        betas: (n, V) preprocessed betas.
        targets: (n, C).
        groups: (n,) names, the stimuli; trials of one group are held out together where penalties are compared.
        hold_out: (n,) names of larger groups, such as classes, whose trials `held_out` predicts from the others; `groups`
            by default. Penalties are not compared on them: what is unseen in whole classes can be so little that the
            comparison is one of noise, and any penalty may win.
        score: what the penalty maximises on held-out trials: mean cosine (when only the direction is used), or the
            fraction of variance explained.
        num_folds: cross-validation folds; fewer when there are fewer groups.
        seed: of the folds.
        per_target: choose a penalty for every column of `targets` by itself (score r2) instead of one for all.

    Raises:
        DataError: fewer than two groups.
    """
    x, y = betas, targets.double()
    losses, folds = _compared(_folds(x, y, groups, num_folds, seed), y, score)
    best = losses.argmin(0) if per_target else losses.sum(1).argmin()
    penalty = PENALTIES[best] if per_target else float(PENALTIES[best])
    if score == "cosine":
        quality = -losses[best].sum().item() / len(y)
    else:
        missed = losses.gather(0, best[None]) if per_target else losses[best]
        quality = 1 - (missed.sum() / (len(y) * y.var(0, correction=0).sum())).item()
    if hold_out is not None and list(hold_out) != list(groups):
        folds.clear()
        held_out = _held_out(_folds(x, y, hold_out, num_folds, seed), y, penalty)
    else:
        held_out = _held_out(folds, y, penalty)
        folds.clear()
    weight, bias = RidgePath(x, y).solve(penalty)
    typical, each = (float(penalty.median()), penalty) if isinstance(penalty, Tensor) else (penalty, None)
    return RidgeFit(weight.float(), bias.float(), typical, quality, held_out, each)


class _Fold(NamedTuple):
    rows: np.ndarray
    """(m,) held out."""
    path: RidgePath
    """Of the other trials."""
    scores: Tensor
    """(m, r) of the rows, as `RidgePath.predict` takes them."""

    def predict(self, penalty: float | Tensor) -> Tensor:
        """(m, C) for the rows."""
        return self.path.predict(self.scores, penalty)

    def kept(self) -> _Fold:
        """The same in float32: what is kept of all folds at once, until the penalty is known, is the largest of a fit."""
        self.path.rotated = self.path.rotated.float()
        return self._replace(scores=self.scores.float())


def _folds(x: Tensor, y: Tensor, groups: Sequence[str], num_folds: int, seed: int) -> Iterator[_Fold]:
    """Fits that never saw the groups of the rows they hold out. One product with the betas serves every penalty.

    The predictions of all penalties together would be P times as large as `y`, so they are made when they are asked for.
    """
    names = set(groups)
    if len(names) < 2:
        raise DataError(
            f"There is one training stimulus or class ({', '.join(names)}), and ridge regression needs two or more: its penalty "
            "is chosen on held-out ones. Take more trials, or a baseline without a fit such as mean-image."
        )
    for inside, outside in k_folds(groups, min(num_folds, len(names)), seed):
        path = RidgePath(x, y, torch.from_numpy(inside))
        fold = _Fold(outside, path, path.project(x[outside]))
        del path.right  # as large as the betas, and nothing else is projected
        yield fold
        del path, fold  # before the next is made


def _compared(
    folds: Iterable[_Fold], y: Tensor, score: Literal["cosine", "r2"]
) -> tuple[Tensor, list[_Fold]]:
    """Losses (P, C) of the `PENALTIES`, summed over the folds, and the folds as they are kept."""
    losses, kept = [], []
    for fold in folds:
        losses.append(torch.stack([_losses(fold, y, penalty, score) for penalty in PENALTIES.tolist()]))
        kept.append(fold.kept())
        del fold
    return torch.stack(losses).sum(0), kept


def _held_out(folds: Iterable[_Fold], y: Tensor, penalty: float | Tensor) -> Tensor:
    """(n, C) float32: every trial predicted by the fit that never saw its group, with one penalty or one a target (C,)."""
    held_out = torch.empty(y.shape)
    for fold in folds:
        held_out[fold.rows] = fold.predict(penalty).float()
    return held_out


def _losses(fold: _Fold, y: Tensor, penalty: float, score: Literal["cosine", "r2"]) -> Tensor:
    """(C,) squared errors of held-out predictions, or (1,) minus their cosines, summed over trials."""
    guess, truth = fold.predict(penalty), y[fold.rows]
    cosine = score == "cosine"
    return -_cosine(guess, truth).sum()[None] if cosine else guess.sub_(truth).square_().sum(0)


class RidgePath:
    """Ridge for many penalties from one decomposition of the smaller Gram matrix, in float64; the tables may be in float32."""

    def __init__(self, x: Tensor, y: Tensor, rows: Tensor | None = None) -> None:
        """x: (n, V), y: (n, C); `rows` are those to fit, all when absent, and no copy is made of them."""
        rows = torch.arange(len(x)) if rows is None else rows
        n, width, targets = len(rows), x.shape[1], y.shape[1]
        dual = n <= width
        by_row = list(parts(n, width + targets))
        self.x_mean = sum((x[rows[p]].sum(0, dtype=torch.float64) for p in by_row), torch.zeros(())) / n
        self.y_mean = sum((y[rows[p]].sum(0, dtype=torch.float64) for p in by_row), torch.zeros(())) / n

        @lru_cache(maxsize=1)  # of a small table that is all, and serves twice
        def columns(start: int, stop: int) -> Tensor:
            return x[:, start:stop][rows].double() - self.x_mean[start:stop]

        gram = grams.zeros(min(n, width))
        if dual:  # x x^T = U S^2 U^T
            for part in parts(width, n):
                grams.add(gram, columns(part.start, part.stop).numpy().T)
        else:  # x^T x = V S^2 V^T
            for part in by_row:
                grams.add(gram, (x[rows[part]].double() - self.x_mean).numpy())
        squares, vectors = (torch.from_numpy(found) for found in grams.decompose(gram, 1e-12))
        del gram
        self.squares, self.right = squares, vectors
        product = torch.zeros(len(squares) if dual else width, targets, dtype=torch.float64)  # U^T y or x^T y
        for part in by_row:
            left = vectors[part] if dual else x[rows[part]].double() - self.x_mean
            product.addmm_(left.T, y[rows[part]].double() - self.y_mean)
        if dual:
            vectors = vectors / squares.sqrt()
            self.right = torch.empty(width, len(squares), dtype=torch.float64)
            for part in parts(width, n):
                self.right[part] = columns(part.start, part.stop).T @ vectors
        self.rotated = product.mul_(squares.sqrt()[:, None]) if dual else vectors.T @ product  # S U^T y
        self.mean_square = self.squares.mean()

    def solve(self, penalty: float | Tensor) -> tuple[Tensor, Tensor]:
        """Weight (V, C) and bias (C,) for one penalty, or for one a target (C,)."""
        weight = self._times(self.right, penalty)
        return weight, self.y_mean - self.x_mean @ weight

    def project(self, x: Tensor) -> Tensor:
        """(m, V) -> (m, r), what `predict` takes: one product for all penalties."""
        return (x.double() - self.x_mean) @ self.right

    def predict(self, scores: Tensor, penalty: float | Tensor) -> Tensor:
        """(m, r) of `project` -> (m, C)."""
        return self._times(scores.double(), penalty).add_(self.y_mean)

    def _times(self, left: Tensor, penalty: float | Tensor) -> Tensor:
        """(m, r) times what the penalty leaves of S U^T y (r, C): (m, C), some columns at a time."""
        found = torch.empty(len(left), self.rotated.shape[1], dtype=torch.float64)
        for part in parts(found.shape[1], len(self.squares)):
            each = penalty[part] if isinstance(penalty, Tensor) else penalty
            shrunk = self.rotated[:, part] / (self.squares[:, None] + each * self.mean_square)
            found[:, part] = left @ shrunk
        return found


def _cosine(guess: Tensor, truth: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(guess, truth, dim=1)
