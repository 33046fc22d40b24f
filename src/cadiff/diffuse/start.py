"""Where the condition starts: ridge regressions from betas to what the prior already understands.

The method trains the condition from a random start, which takes many thousands of steps. Three closed-form starts, all
variants of ours, shorten that; all are fitted on training trials only.

* `LabelStart`: betas -> label embedding of the stimulus. The prior was trained with that one token as its context, so
  the tuned model begins as a label-conditioned prior instead of noise.
* `ImageStart`: betas -> features of the stimulus, each shrunk by how badly it is predicted, which is how a prior that was
  adapted to them (`cadiff prior adapt`) expects them.
* `LatentStart`: betas -> latents of the stimulus, low-rank. Sampling may then begin at a noised blurry guess instead
  of pure noise: the low-level path of Takagi and Nishimoto (2023) and Ozcelik and VanRullen (2023), SDEdit's start.

Letters in shapes: n trials, V voxels, C context width, F coordinates, D latent size, k components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from cadiff.encoding.components import fit_components
from cadiff.encoding.ridge import RidgeFit, fit_ridge


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


@dataclass(frozen=True)
class ImageStart:
    """What the betas say of the stimulus's coordinates (`cadiff.priors.image_context`)."""

    weight: Tensor
    """(V, F)."""
    bias: Tensor
    """(F,)."""

    @classmethod
    def fit(
        cls, betas: Tensor, coordinates: Tensor, groups: Sequence[str], *, seed: int = 0
    ) -> tuple[ImageStart, Tensor, RidgeFit]:
        """Fits the start on training trials: betas (n, V), coordinates (n, F) of their stimuli, a penalty for each coordinate.

        Returns:
            The start; its held-out value (n, F) for each training trial, for the same reason as in `LabelStart.fit`; the fit.
        """
        ridge = fit_ridge(betas, coordinates, groups, score="r2", seed=seed, per_target=True)
        return cls(ridge.weight, ridge.bias), ridge.held_out, ridge

    def __call__(self, betas: Tensor) -> Tensor:
        """Preprocessed betas (B, V) -> coordinates (B, F)."""
        return betas @ self.weight + self.bias


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
        cls,
        betas: Tensor,
        latents: Tensor | np.ndarray,
        ids: Sequence[str],
        which: Tensor | None = None,
        *,
        num_components: int | None = 64,
        **options: Any,
    ) -> tuple[LatentStart, RidgeFit]:
        """Fits the start on training trials: betas (n, V), latents of their stimuli; see `fit_components`."""
        targets = np.asarray(latents)
        found, ridge = fit_components(betas, targets, ids, which, num_components=num_components, **options)
        return cls(*found), ridge

    def __call__(self, betas: Tensor) -> Tensor:
        """Preprocessed betas (B, V) -> flat latents (B, D)."""
        return betas @ self.weight @ self.components + self.bias
