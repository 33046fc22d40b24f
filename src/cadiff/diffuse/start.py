"""Where the condition starts: ridge regressions from betas to what the prior already understands.

The method trains the condition from a random start, which takes many thousands of steps. Two closed-form starts, both
variants of ours, shorten that; both are fitted on training trials only.

* `LabelStart`: betas -> label embedding of the stimulus. The prior was trained with that one token as its context, so
  the tuned model begins as a label-conditioned prior instead of noise.
* `LatentStart`: betas -> latents of the stimulus, low-rank. Sampling may then begin at a noised blurry guess instead
  of pure noise: the low-level path of Takagi and Nishimoto (2023) and Ozcelik and VanRullen (2023), SDEdit's start.

Letters in shapes: n trials, V voxels, C context width, D latent size, k components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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


def fit_ridge(
    betas: Tensor,
    targets: Tensor,
    groups: Sequence[str],
    *,
    score: Literal["cosine", "r2"],
    hold_out: Sequence[str] | None = None,
    num_folds: int = 5,
    seed: int = 0,
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
    """
    x, y = betas.double(), targets.double()
    guesses = _held_out(x, y, groups, PENALTIES.tolist(), num_folds, seed)
    quality = [_cosine(guess, y) if score == "cosine" else _explained(guess, y) for guess in guesses]
    best = max(range(len(quality)), key=quality.__getitem__)
    penalty = float(PENALTIES[best])
    held_out = guesses[best]
    if hold_out is not None and list(hold_out) != list(groups):
        held_out = _held_out(x, y, hold_out, [penalty], num_folds, seed)[0]
    weight, bias = _Ridge(x, y).solve(penalty)
    return RidgeFit(weight.float(), bias.float(), penalty, quality[best], held_out.float())


def _held_out(
    x: Tensor, y: Tensor, groups: Sequence[str], penalties: Sequence[float], num_folds: int, seed: int
) -> Tensor:
    """(penalties, n, C): every trial predicted by a fit that never saw its group."""
    held_out = x.new_empty(len(penalties), len(x), y.shape[1])
    for inside, outside in k_folds(groups, min(num_folds, len(set(groups))), seed):
        fit = _Ridge(x[inside], y[inside])
        scores = fit.project(x[outside])  # one product with the betas serves every penalty
        for i, penalty in enumerate(penalties):
            held_out[i, outside] = fit.predict(scores, penalty)
    return held_out


@dataclass(frozen=True)
class LabelStart:
    """The label embedding that the betas point to, at the length that the prior is used to."""

    weight: Tensor
    """(V, C)."""
    bias: Tensor
    """(C,)."""
    norm: Tensor
    """(): mean length of the label embeddings."""

    @classmethod
    def fit(
        cls,
        betas: Tensor,
        labels: Tensor,
        table: Tensor,
        groups: Sequence[str],
        *,
        hold_out: Sequence[str] | None = None,
        seed: int = 0,
    ) -> tuple[LabelStart, Tensor, RidgeFit]:
        """Fits the start on training trials.

        Args:
            betas: (n, V) preprocessed betas of training trials.
            labels: (n,) row of `table` of each trial.
            table: (classes, C) label embeddings.
            groups: (n,) the stimulus of each trial.
            hold_out: (n,) what the held-out values leave out together, such as classes; `groups` by default.

        Returns:
            The start; its held-out value (n, C) for each training trial, which tuning reads instead of the in-sample one
            (that would be far better than the values of test trials, and the model would learn to trust it); and the fit.
        """
        ridge = fit_ridge(betas, table[labels], groups, score="cosine", hold_out=hold_out, seed=seed)
        start = cls(ridge.weight, ridge.bias, table[labels.unique()].norm(dim=1).mean())
        return start, scale_to(ridge.held_out, start.norm), ridge

    def __call__(self, betas: Tensor) -> Tensor:
        """Preprocessed betas (B, V) -> embedding (B, C), every row of length `norm`."""
        return scale_to(betas @ self.weight + self.bias, self.norm)


def scale_to(rows: Tensor, norm: Tensor) -> Tensor:
    """Rows (B, C), each rescaled to length `norm`."""
    return rows * (norm / rows.norm(dim=1, keepdim=True).clamp_min(1e-6))


@dataclass(frozen=True)
class LatentStart:
    """Low-rank ridge from betas to latents."""

    weight: Tensor
    """(V, k): betas -> component scores."""
    components: Tensor
    """(k, D): rows are principal components of the training latents."""
    bias: Tensor
    """(D,)."""
    mean: Tensor
    """(D,): mean latent of the training trials, the guess without betas."""

    @classmethod
    def fit(
        cls, betas: Tensor, latents: Tensor, groups: Sequence[str], *, num_components: int = 64, seed: int = 0
    ) -> tuple[LatentStart, RidgeFit]:
        """Fits the start on training trials: betas (n, V), latents (n, ...) of their stimuli."""
        flat = latents.flatten(1).double()
        mean = flat.mean(0)
        rank = min(num_components, len(flat) - 1, flat.shape[1])
        _, _, right = torch.linalg.svd(flat - mean, full_matrices=False)
        components = right[:rank]
        ridge = fit_ridge(betas, (flat - mean) @ components.T, groups, score="r2", seed=seed)
        bias = mean + ridge.bias.double() @ components
        return cls(ridge.weight, components.float(), bias.float(), mean.float()), ridge

    def __call__(self, betas: Tensor) -> Tensor:
        """Preprocessed betas (B, V) -> flat latents (B, D)."""
        return betas @ self.weight @ self.components + self.bias


class _Ridge:
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

    def solve(self, penalty: float) -> tuple[Tensor, Tensor]:
        weight = self.right @ (self.rotated / (self.squares + penalty * self.mean_square)[:, None])
        return weight, self.y_mean - self.x_mean @ weight

    def project(self, x: Tensor) -> Tensor:
        return (x - self.x_mean) @ self.right

    def predict(self, scores: Tensor, penalty: float) -> Tensor:
        return self.y_mean + scores @ (self.rotated / (self.squares + penalty * self.mean_square)[:, None])


def _cosine(guess: Tensor, truth: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(guess, truth, dim=1).mean().item()


def _explained(guess: Tensor, truth: Tensor) -> float:
    return 1 - ((guess - truth).square().sum() / (truth - truth.mean(0)).square().sum()).item()
