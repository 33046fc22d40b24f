"""Ridge regression with a penalty chosen by cross-validation, folds grouped by stimulus. The one that all rooms use.

    weight, bias = argmin ||x weight + bias - y||^2 + penalty ||weight||^2, the bias unpenalised

Letters in shapes: n trials, V voxels (or whatever predicts), C targets, P penalties, r rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cadiff.data.splits import k_folds
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
    x, y = betas.double(), targets.double()
    folds = _folds(x, y, groups, num_folds, seed)
    losses = torch.stack([_losses(folds, y, penalty, score) for penalty in PENALTIES.tolist()])  # (P, C)
    if per_target:
        penalties = PENALTIES[losses.argmin(0)]
        held_out = _held_out(folds, y, penalties)
        weight, bias = RidgePath(x, y).solve(penalties)
        typical, quality = float(penalties.median()), _explained(held_out, y)
        return RidgeFit(weight.float(), bias.float(), typical, quality, held_out.float(), penalties)
    totals = losses.sum(1).tolist()
    penalty = float(PENALTIES[min(range(len(totals)), key=totals.__getitem__)])
    held_out = _held_out(folds, y, penalty)
    quality = _cosine(held_out, y).mean().item() if score == "cosine" else _explained(held_out, y)
    del folds
    if hold_out is not None and list(hold_out) != list(groups):
        held_out = _held_out(_folds(x, y, hold_out, num_folds, seed), y, penalty)
    weight, bias = RidgePath(x, y).solve(penalty)
    return RidgeFit(weight.float(), bias.float(), penalty, quality, held_out.float())


class _Fold(NamedTuple):
    rows: np.ndarray
    """(m,) held out."""
    path: RidgePath
    """Of the other trials."""
    scores: Tensor
    """(m, r) of the rows, as `RidgePath.predict` takes them."""


def _folds(x: Tensor, y: Tensor, groups: Sequence[str], num_folds: int, seed: int) -> list[_Fold]:
    """Fits that never saw the groups of the rows they hold out. One product with the betas serves every penalty.

    The predictions of all penalties together would be P times as large as `y`, so they are made when they are asked for.
    """
    names = set(groups)
    if len(names) < 2:
        raise DataError(
            f"There is one training stimulus or class ({', '.join(names)}), and ridge regression needs two or more: its penalty "
            "is chosen on held-out ones. Take more trials, or a baseline without a fit such as mean-image."
        )
    folds = []
    for inside, outside in k_folds(groups, min(num_folds, len(names)), seed):
        path = RidgePath(x[inside], y[inside])
        folds.append(_Fold(outside, path, path.project(x[outside])))
        del path.right  # as large as the betas, and nothing else is projected
    return folds


def _losses(folds: Sequence[_Fold], y: Tensor, penalty: float, score: Literal["cosine", "r2"]) -> Tensor:
    """(C,) squared errors of held-out predictions, or (1,) minus their cosines, summed over trials."""
    found = []
    for rows, path, scores in folds:
        guess, truth = path.predict(scores, penalty), y[rows]
        cosine = score == "cosine"
        found.append(-_cosine(guess, truth).sum()[None] if cosine else (guess - truth).square().sum(0))
    return torch.stack(found).sum(0)


def _held_out(folds: Sequence[_Fold], y: Tensor, penalty: float | Tensor) -> Tensor:
    """(n, C): every trial predicted by the fit that never saw its group, with one penalty or one a target (C,)."""
    held_out = torch.empty_like(y)
    for rows, path, scores in folds:
        held_out[rows] = path.predict(scores, penalty)
    return held_out


class RidgePath:
    """Ridge for many penalties from one decomposition of the smaller Gram matrix, in float64."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x_mean, self.y_mean = x.mean(0), y.mean(0)
        x, y = x - self.x_mean, y - self.y_mean
        if len(x) <= x.shape[1]:  # dual: x x^T = U S^2 U^T
            squares, left = torch.linalg.eigh(x @ x.T)
            keep = squares > squares[-1].clamp_min(1e-300) * 1e-12
            self.squares, left = squares[keep], left[:, keep]
            self.right = x.T @ left / self.squares.sqrt()  # (V, r)
            self.rotated = self.squares.sqrt()[:, None] * (left.T @ y)  # S U^T y
        else:  # primal: x^T x = V S^2 V^T
            squares, right = torch.linalg.eigh(x.T @ x)
            keep = squares > squares[-1].clamp_min(1e-300) * 1e-12
            self.squares, self.right = squares[keep], right[:, keep]
            self.rotated = self.right.T @ (x.T @ y)
        self.mean_square = self.squares.mean()

    def solve(self, penalty: float | Tensor) -> tuple[Tensor, Tensor]:
        """Weight (V, C) and bias (C,) for one penalty, or for one a target (C,)."""
        weight = self.right @ self._shrunk(penalty)
        return weight, self.y_mean - self.x_mean @ weight

    def project(self, x: Tensor) -> Tensor:
        """(m, V) -> (m, r), what `predict` takes: one product for all penalties."""
        return (x - self.x_mean) @ self.right

    def predict(self, scores: Tensor, penalty: float | Tensor) -> Tensor:
        """(m, r) of `project` -> (m, C)."""
        return self.y_mean + scores @ self._shrunk(penalty)

    def _shrunk(self, penalty: float | Tensor) -> Tensor:
        return self.rotated / (self.squares[:, None] + penalty * self.mean_square)


def _cosine(guess: Tensor, truth: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(guess, truth, dim=1)


def _explained(guess: Tensor, truth: Tensor) -> float:
    return 1 - ((guess - truth).square().sum() / (truth - truth.mean(0)).square().sum()).item()
