"""Baselines that show training images or their means.

m test rows, V voxels, H x W pixels; pictures are uint8 (m, 1, H, W, 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cadiff.baselines.fitted import State, preprocessor_of, preprocessor_state
from cadiff.data.dataset import BrainDataset
from cadiff.data.preprocess import PreprocessConfig, Preprocessor
from cadiff.encoding.pictures import common_side, shown_pictures
from cadiff.errors import DataError


@dataclass(frozen=True)
class Retrieval:
    """The image of the training stimulus whose mean response correlates best with the betas."""

    preprocessor: Preprocessor
    patterns: np.ndarray
    """(stimuli, V) float32, centred over voxels and of length 1."""
    images: np.ndarray
    """uint8 (stimuli, H, W, 3)."""

    @classmethod
    def fit(cls, dataset: BrainDataset, rows: np.ndarray, *, size: int | None = None) -> Retrieval:
        """Averages the training trials of each stimulus; `size` resizes the pictures (pixels, square); see `common_side`."""
        betas = dataset.betas[rows]
        preprocessor = Preprocessor.fit(betas, PreprocessConfig(), patch_size=1)
        ids = dataset.trials["stimulus_id"].to_numpy()[rows]
        trials: dict[str, list[int]] = {}
        for i, name in enumerate(ids):
            trials.setdefault(str(name), []).append(i)
        normalised = preprocessor(betas)
        means = np.stack([normalised[members].mean(axis=0) for members in trials.values()])
        return cls(preprocessor, _unit(means), shown_pictures(dataset, list(trials), size))

    def reconstruct(
        self, betas: np.ndarray, *, stimulus_ids: Sequence[str], repeats: np.ndarray
    ) -> np.ndarray:
        """Raw betas (m, V) -> uint8 (m, 1, H, W, 3)."""
        similarity = _unit(self.preprocessor(betas)) @ self.patterns.T  # (m, stimuli), Pearson over voxels
        return self.images[similarity.argmax(axis=1)][:, None]

    def facts(self) -> dict[str, Any]:
        """How many pictures there are to choose from."""
        return {"pictures": len(self.images)}

    def state(self) -> State:
        """See `Baseline.state`."""
        own = preprocessor_state(self.preprocessor)
        found = {"patterns": torch.from_numpy(self.patterns), "images": torch.from_numpy(self.images)}
        return State(own.config, own.tensors | found)

    @classmethod
    def from_state(cls, state: State, dataset: BrainDataset) -> Retrieval:
        """See `Baseline.from_state`."""
        return cls(preprocessor_of(state), *(state.tensors[key].numpy() for key in ("patterns", "images")))


@dataclass(frozen=True)
class MeanImage:
    """The mean of the training images, whatever the betas say: the floor of pixel metrics."""

    image: np.ndarray
    """uint8 (H, W, 3)."""

    @classmethod
    def fit(cls, dataset: BrainDataset, rows: np.ndarray, *, size: int | None = None) -> MeanImage:
        """Averages the distinct training images; `size` resizes them (pixels, square)."""
        names = list(dict.fromkeys(dataset.trials["stimulus_id"].to_numpy()[rows]))
        return cls(_mean_image(dataset, names, common_side(dataset, names, size)))

    def reconstruct(
        self, betas: np.ndarray, *, stimulus_ids: Sequence[str], repeats: np.ndarray
    ) -> np.ndarray:
        """Raw betas (m, V) -> uint8 (m, 1, H, W, 3), all the same."""
        return np.broadcast_to(self.image, (len(betas), 1, *self.image.shape))

    def facts(self) -> dict[str, Any]:
        """Nothing was chosen."""
        return {}

    def state(self) -> State:
        """See `Baseline.state`."""
        return State({}, {"image": torch.from_numpy(self.image)})

    @classmethod
    def from_state(cls, state: State, dataset: BrainDataset) -> MeanImage:
        """See `Baseline.from_state`."""
        return cls(state.tensors["image"].numpy())


@dataclass(frozen=True)
class ClassMean:
    """Oracle: the mean training image of the test stimulus's true class. It reads the label, not the betas."""

    images: dict[str, np.ndarray]
    """label -> uint8 (H, W, 3)."""
    labels: dict[str, str]
    """stimulus_id -> label, of every stimulus in the dataset."""

    @classmethod
    def fit(cls, dataset: BrainDataset, rows: np.ndarray, *, size: int | None = None) -> ClassMean:
        """Averages the distinct training images of each class; `size` resizes them (pixels, square).

        Raises:
            DataError: a training stimulus without a label.
        """
        labels = _labels(dataset)
        names = list(dict.fromkeys(dataset.trials["stimulus_id"].to_numpy()[rows]))
        if missing := [name for name in names if name not in labels]:
            raise DataError(
                f"Stimulus {missing[0]!r} has no label in stimuli.tsv: the class-mean oracle needs one each."
            )
        classes: dict[str, list[str]] = {}
        for name in names:
            classes.setdefault(labels[name], []).append(name)
        side = common_side(dataset, names, size)
        return cls({label: _mean_image(dataset, group, side) for label, group in classes.items()}, labels)

    def reconstruct(
        self, betas: np.ndarray, *, stimulus_ids: Sequence[str], repeats: np.ndarray
    ) -> np.ndarray:
        """Stimulus ids (m,) -> uint8 (m, 1, H, W, 3).

        Raises:
            DataError: a test class that no training stimulus has.
        """
        pictures = []
        for stimulus_id in stimulus_ids:
            label = self.labels.get(stimulus_id)
            if label not in self.images:
                raise DataError(
                    f"Test stimulus {stimulus_id!r} has the class {label!r}, which no training stimulus has: the class-mean "
                    "oracle needs shared classes; use the oracle 'label' or the baseline 'mean-image'."
                )
            pictures.append(self.images[label])
        return np.stack(pictures)[:, None]

    def facts(self) -> dict[str, Any]:
        """How many classes there are."""
        return {"classes": len(self.images)}

    def state(self) -> State:
        """See `Baseline.state`."""
        stacked = np.stack(list(self.images.values()))
        return State({"classes": list(self.images)}, {"images": torch.from_numpy(stacked)})

    @classmethod
    def from_state(cls, state: State, dataset: BrainDataset) -> ClassMean:
        """See `Baseline.from_state`; labels are those of `dataset`."""
        images = state.tensors["images"].numpy()
        return cls(dict(zip(state.config["classes"], images, strict=True)), _labels(dataset))


def _labels(dataset: BrainDataset) -> dict[str, str]:
    """stimulus_id -> label."""
    return {str(s): str(label) for s, label in dataset.stimuli["label"].dropna().items()}


def _mean_image(dataset: BrainDataset, names: Sequence[str], side: int | None) -> np.ndarray:
    """Mean of these stimuli's pictures at the side, uint8 (H, W, 3); one of them at a time is in memory."""
    total = sum(dataset.images([name], side)[0].astype(np.float64) for name in names)
    return np.rint(total / len(names)).astype(np.uint8)


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows centred and of length 1; their products are Pearson correlations. A constant row becomes zeros."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
