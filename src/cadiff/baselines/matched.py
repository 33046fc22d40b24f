"""Ridge regression whose predictions are given the spread of the targets, as Ozcelik et al. 2022 do.

Ridge predictions vary too little. The released code takes their mean and deviation over the test set, which no single trial
allows and which lets every test trial see the others (`test`). Here they are those of out-of-fold predictions of the training
trials, and each prediction is then brought to the targets' mean length (`training`), or only the length is matched (`length`).

n trials, m test rows, V voxels, D numbers of a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from cadiff.baselines.fitted import put, take
from cadiff.diffuse.start import LatentStart, scale_to
from cadiff.encoding.ridge import RidgePath
from cadiff.errors import ConfigError

Matching = Literal["training", "length", "test", "none"]


@dataclass(frozen=True)
class Regression:
    """Ridge from betas to vectors, with what is needed to give predictions the spread of the targets."""

    start: LatentStart
    guess_mean: Tensor
    """(D,): of out-of-fold predictions of the training trials; their deviation likewise."""
    guess_std: Tensor
    mean: Tensor
    """(D,): of the targets of the training trials; their deviation, and their mean length (), likewise."""
    std: Tensor
    length: Tensor
    found: dict[str, float]
    """Penalty, and out-of-fold fraction of variance explained with the one that cross-validation chose."""

    @classmethod
    def fit(
        cls,
        betas: Tensor,
        targets: Tensor,
        ids: Sequence[str],
        which: Tensor | None = None,
        *,
        seed: int,
        alpha: float | None = None,
    ) -> Regression:
        """Betas (n, V) and targets (n, D) of their stimuli, or (u, D) of the distinct ones, trial i's being `targets[which[i]]`.

        `alpha` fixes the penalty, counted as in scikit-learn.
        """
        start, ridge = LatentStart.fit(betas, targets, ids, which, num_components=None, seed=seed)
        targets = targets if which is None else targets[which]
        guesses = start.mean + ridge.held_out @ start.components
        found = {"penalty": ridge.penalty, "held_out_r2": ridge.score}
        if alpha is not None:
            scores = (targets - start.mean).double() @ start.components.double().T
            path = RidgePath(betas.double(), scores)
            weight, bias = path.solve(alpha / float(path.mean_square))
            bias = start.mean + bias.float() @ start.components
            start, found = replace(start, weight=weight.float(), bias=bias), {"alpha": alpha}
        # laid out in memory as it comes back from a file, so that a saved fit predicts the same to the last bit
        start = LatentStart(**{name: value.contiguous() for name, value in vars(start).items()})
        spread = (
            guesses.mean(0),
            guesses.std(0, correction=0),
            targets.mean(0),
            targets.std(0, correction=0),
        )
        return cls(start, *spread, targets.norm(dim=1).mean(), found)

    def __call__(self, betas: Tensor, matching: Matching) -> Tensor:
        """Preprocessed betas (m, V) -> vectors (m, D).

        Raises:
            ConfigError: a single row cannot be matched to the rows of a test set.
        """
        guess = self.start(betas)
        if matching == "none":
            return guess
        if matching == "length":
            return scale_to(guess, self.length)
        mean, std = self.guess_mean, self.guess_std
        if matching == "test":
            if len(guess) < 2:
                raise ConfigError(
                    "protocol=official matches predictions over the test set, and this one has a single stimulus: leave it out."
                )
            mean, std = guess.mean(0), guess.std(0, correction=0)
        matched = (guess - mean) / std.clamp_min(1e-12) * self.std + self.mean
        return scale_to(matched, self.length) if matching == "training" else matched

    def tensors(self) -> dict[str, Tensor]:
        """All numbers by name; `from_tensors` is the inverse."""
        own = {name: getattr(self, name) for name in ("guess_mean", "guess_std", "mean", "std", "length")}
        return own | put("start", vars(self.start))

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], found: dict[str, float]) -> Regression:
        """The inverse of `tensors`."""
        own = {name: value for name, value in tensors.items() if not name.startswith("start.")}
        return cls(LatentStart(**take("start", tensors)), **own, found=found)
