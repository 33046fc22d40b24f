"""Ridge regression with a penalty chosen by cross-validation, folds grouped by stimulus. The one that all rooms use.

    weight, bias = argmin ||x weight + bias - y||^2 + penalty ||weight||^2, the bias unpenalised

Letters in shapes: n trials, V voxels (or whatever predicts), C targets, P penalties, r rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from cadiff.data.splits import k_folds

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
    """
    x, y = betas.double(), targets.double()
    guesses = _held_out(x, y, groups, PENALTIES.tolist(), num_folds, seed)
    if per_target:
        return _per_target(x, y, guesses)
    quality = [_cosine(guess, y) if score == "cosine" else _explained(guess, y) for guess in guesses]
    best = max(range(len(quality)), key=quality.__getitem__)
    penalty = float(PENALTIES[best])
    held_out = guesses[best]
    if hold_out is not None and list(hold_out) != list(groups):
        held_out = _held_out(x, y, hold_out, [penalty], num_folds, seed)[0]
    weight, bias = RidgePath(x, y).solve(penalty)
    return RidgeFit(weight.float(), bias.float(), penalty, quality[best], held_out.float())


def _per_target(x: Tensor, y: Tensor, guesses: Tensor) -> RidgeFit:
    """The fit in which every target has the penalty of its smallest held-out squared error; guesses (P, n, C)."""
    best = (guesses - y).square().sum(1).argmin(0)
    penalties = PENALTIES[best]
    held_out = guesses.gather(0, best.expand(1, *y.shape))[0]
    weight, bias = RidgePath(x, y).solve(penalties)
    typical, score = float(penalties.median()), _explained(held_out, y)
    return RidgeFit(weight.float(), bias.float(), typical, score, held_out.float(), penalties)


def _held_out(
    x: Tensor, y: Tensor, groups: Sequence[str], penalties: Sequence[float], num_folds: int, seed: int
) -> Tensor:
    """(penalties, n, C): every trial predicted by a fit that never saw its group."""
    held_out = x.new_empty(len(penalties), len(x), y.shape[1])
    for inside, outside in k_folds(groups, min(num_folds, len(set(groups))), seed):
        fit = RidgePath(x[inside], y[inside])
        scores = fit.project(x[outside])  # one product with the betas serves every penalty
        for i, penalty in enumerate(penalties):
            held_out[i, outside] = fit.predict(scores, penalty)
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


def _cosine(guess: Tensor, truth: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(guess, truth, dim=1).mean().item()


def _explained(guess: Tensor, truth: Tensor) -> float:
    return 1 - ((guess - truth).square().sum() / (truth - truth.mean(0)).square().sum()).item()
