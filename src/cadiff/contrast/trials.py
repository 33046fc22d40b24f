"""What phases 1 and 2 train on: preprocessed trials as one pool, and schedules counted in epochs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field, model_validator

from cadiff import artifacts
from cadiff.data.dataset import BrainDataset
from cadiff.data.preprocess import Preprocessor
from cadiff.errors import DataError
from cadiff.training import FitConfig


class EpochFit(FitConfig):
    """How to train, with the length given in steps or in passes over the trials."""

    steps: int | None = Field(default=None, ge=1)  # pyright: ignore[reportIncompatibleVariableOverride]
    """Optimiser steps, in place of `epochs`; 1000 where neither is given."""
    warmup_steps: int | None = Field(default=None, ge=0)  # pyright: ignore[reportIncompatibleVariableOverride]
    """Linear warm-up from zero, in place of `warmup_epochs`; none where neither is given."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the trials, in place of `steps`."""
    warmup_epochs: float | None = Field(default=None, ge=0)
    """Warm-up in passes over the trials, in place of `warmup_steps`."""

    @model_validator(mode="after")
    def _one_length(self) -> "EpochFit":
        for epochs, steps in (("epochs", "steps"), ("warmup_epochs", "warmup_steps")):
            passes, count = getattr(self, epochs), getattr(self, steps)
            if passes is not None and count is not None:
                raise ValueError(
                    f"{epochs}={passes:g} and {steps}={count} are both given: set {epochs}=null to count in steps."
                )
        return self

    def for_trials(self, num_trials: int) -> FitConfig:
        """The same schedule in steps, for `num_trials` trials."""
        per_step = self.batch_size * self.accumulate

        def counted(epochs: float | None, steps: int | None, default: int) -> int:
            if epochs is None:
                return default if steps is None else steps
            return math.ceil(
                epochs * num_trials / per_step - 1e-9
            )  # .1 epochs of 30 trials are 3 and no more

        plain = {name: getattr(self, name) for name in FitConfig.model_fields}
        plain["steps"] = max(1, counted(self.epochs, self.steps, FitConfig().steps))
        plain["warmup_steps"] = counted(self.warmup_epochs, self.warmup_steps, 0)
        return FitConfig.model_validate(plain)


@dataclass(frozen=True)
class TrialPool:
    """Trials of one or more datasets, each preprocessed on its own, as one list. Betas stay on disk."""

    datasets: Sequence[BrainDataset]
    preprocessors: Sequence[Preprocessor]
    rows: Sequence[np.ndarray]
    """Rows of each dataset that belong to the pool."""

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.rows)

    def betas(self, indices: np.ndarray) -> np.ndarray:
        """Encoder input float32 (len(indices), L), in the order of `indices` (0 .. len(self) - 1)."""
        ends = np.cumsum([len(rows) for rows in self.rows])
        owner = np.searchsorted(ends, indices, side="right")
        batch = np.empty((len(indices), self.preprocessors[0].num_voxels), np.float32)
        for k, (dataset, preprocessor, rows) in enumerate(
            zip(self.datasets, self.preprocessors, self.rows, strict=True)
        ):
            mine = np.flatnonzero(owner == k)
            if len(mine):
                trials = rows[indices[mine] - (ends[k] - len(rows))]
                try:
                    batch[mine] = preprocessor(dataset.betas[trials])
                except DataError:
                    dataset.refuse_non_finite(trials)  # only here is it known which trials those are
                    raise
        return batch


def dataset_digest(dataset: BrainDataset) -> str:
    """Identifies the content of a dataset by the checksums in its description."""
    return artifacts.dataset_digest(dataset.description)
