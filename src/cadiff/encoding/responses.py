"""Betas of the training trials, kept once: averages a stimulus, single trials, and what predictions miss of these.

Letters in shapes: n stimuli, t trials, T trials of all stimuli, V voxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cadiff.data.preprocess import PreprocessConfig, Preprocessor
from cadiff.encoding.gram import parts


@dataclass(frozen=True, eq=False)
class Responses:
    """Normalised betas of some stimuli."""

    means: np.ndarray
    """(n, V) mean over the trials of each stimulus, of the type of the trials."""
    table: np.ndarray
    """(T, V) single trials, of other stimuli too: a table of them is too large to be copied for every fold."""
    rows: np.ndarray
    """(t,) of the table: the trials of these stimuli."""
    of_trial: np.ndarray
    """(t,) the stimulus of each."""

    @classmethod
    def of(cls, trials: np.ndarray, of_trial: np.ndarray) -> Responses:
        """Averages single trials; stimuli are numbered from 0 without gaps."""
        counts = np.bincount(of_trial)
        means = np.empty((len(counts), trials.shape[1]), trials.dtype)
        for part in parts(trials.shape[1], len(counts)):
            sums = np.zeros((len(counts), part.stop - part.start))
            np.add.at(sums, of_trial, trials[:, part])
            means[:, part] = sums / counts[:, None]
        return cls(means, trials, np.arange(len(trials)), of_trial)

    @property
    def repeats(self) -> np.ndarray:
        """(n,) trials of each stimulus."""
        return np.bincount(self.of_trial)

    def only(self, stimuli: np.ndarray) -> Responses:
        """The same of these stimuli alone, numbered anew."""
        place = np.full(len(self.means), -1)
        place[stimuli] = np.arange(len(stimuli))
        kept = place[self.of_trial] >= 0
        return Responses(self.means[stimuli], self.table, self.rows[kept], place[self.of_trial[kept]])


@dataclass(frozen=True, eq=False)
class Residuals:
    """Single trials minus what was predicted for their stimulus, (t, V): `residuals[rows, voxels]`, two slices, makes a part."""

    responses: Responses
    predicted: np.ndarray
    """(n, all voxels)."""
    voxels: np.ndarray
    """(V,) which of all voxels."""

    @property
    def shape(self) -> tuple[int, int]:
        """t, V."""
        return len(self.responses.rows), len(self.voxels)

    def __getitem__(self, part: tuple[slice, slice]) -> np.ndarray:
        """Float64."""
        rows, voxels = part[0], self.voxels[part[1]]
        span = (
            len(voxels) and voxels[-1] - voxels[0] == len(voxels) - 1
        )  # of neighbours, which are read much faster

        def read(table: np.ndarray, which: np.ndarray) -> np.ndarray:
            return table[which, voxels[0] : voxels[-1] + 1] if span else table[np.ix_(which, voxels)]

        found = read(self.responses.table, self.responses.rows[rows]).astype(np.float64)
        found -= read(self.predicted, self.responses.of_trial[rows])
        return found


def normalised(betas: np.ndarray) -> tuple[Preprocessor, np.ndarray]:
    """Z-scores each voxel of raw betas (T, V), in place where they are float32, and tells by what."""
    preprocessor = Preprocessor.fit(betas, PreprocessConfig(), patch_size=1)
    betas = betas.astype(np.float32, copy=False)
    for part in parts(len(betas), betas.shape[1]):
        betas[part] = preprocessor(betas[part])
    return preprocessor, betas
