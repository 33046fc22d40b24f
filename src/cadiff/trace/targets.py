"""What is read out of the stations: components of the stimuli, by a network that had no say in the pictures, and by pixels.

A target is the first principal components of the training stimuli's features, each divided by its standard deviation over
them. Letters in shapes: n pictures, F features, C components.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import linalg

from cadiff.encoding.features import find_space
from cadiff.errors import DataError
from cadiff.eyes import EYES, is_local, judge_name, load_eye
from cadiff.frozen import kept, tensor_digest
from cadiff.vision import load_classifier

NUM_COMPONENTS = 64
FEWEST = 3
"""Components below which a correlation over them says nothing."""
ROUNDING = 1e-6
"""Relative standard deviations below it are rounding: a picture of four levels of grey has only so many components."""

Extract = Callable[[np.ndarray], np.ndarray]
"""uint8 (n, H, W, 3) -> (n, F)."""


@dataclass(frozen=True, eq=False)
class Target:
    """Features of pictures, and the components of them that are read out."""

    name: str
    label: str
    about: dict[str, Any]
    extract: Extract
    mean: np.ndarray
    """(F,)."""
    axes: np.ndarray
    """(F, C), already divided by the deviation of each component over the training stimuli."""
    explained: float
    """Share of the training stimuli's variance that the components hold."""

    @classmethod
    def fit(
        cls, name: str, label: str, about: dict[str, Any], extract: Extract, pictures: np.ndarray
    ) -> tuple[Target, np.ndarray]:
        """Measures the training stimuli, uint8 (n, H, W, 3); gives the target and their components (n, C).

        Raises:
            DataError: pictures with fewer than `FEWEST` components.
        """
        features = extract(pictures).astype(np.float64)
        mean = features.mean(axis=0)
        centred = features - mean
        variances, axes = _principal(centred, NUM_COMPONENTS)
        alive = variances > ROUNDING**2 * variances.max(initial=0.0)
        if alive.sum() < FEWEST:
            raise DataError(
                f"{label} of the training stimuli have {int(alive.sum())} components, expected at least {FEWEST}: the pictures "
                "are nearly all the same."
            )
        share = float(variances[alive].sum() * len(features) / (centred**2).sum())
        scaled = axes[:, alive] / np.sqrt(variances[alive])
        return cls(name, label, about, extract, mean, scaled, share), centred @ scaled

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """Components (n, C) of pictures uint8 (n, H, W, 3); equal pictures are looked at once."""
        flat = np.ascontiguousarray(pictures).reshape(len(pictures), -1)
        _, first, back = np.unique(flat, axis=0, return_index=True, return_inverse=True)
        return ((self.extract(pictures[first]) - self.mean) @ self.axes)[back.reshape(-1)]


def judge_target(judge: str, pictures: np.ndarray) -> tuple[Target, np.ndarray]:
    """The features of a judge, or of an eye given as NAME=PATH (docs/judges.md); `Target.fit` of the training stimuli.

    Raises:
        ConfigError, ArtifactError, MissingExtraError: as `cadiff.vision.load_classifier` and `cadiff.eyes.load_eye`.
    """
    eye, layer = _open(judge)
    about = {
        "judge": eye.name,
        "layer": layer,
        "preprocessing": eye.preprocessing,
        "weights_sha256": eye.digest(),
    }

    def extract(images: np.ndarray) -> np.ndarray:
        def look() -> torch.Tensor:
            return torch.from_numpy(
                eye.features(images, (layer,), progress=True)[layer].reshape(len(images), -1)
            )

        key = {**about, "pictures": tensor_digest(torch.from_numpy(images))}
        return kept("judge", eye._network, key, look).numpy()

    name = eye.name if "=" in judge else judge_name(judge)
    return Target.fit("judge", f"Features of {name}", about, extract, pictures)


def pixel_target(pictures: np.ndarray) -> tuple[Target, np.ndarray]:
    """Colours of at most 32 x 32 pixels; `Target.fit` of the training stimuli."""
    space = find_space("pixels")
    return Target.fit("pixels", "Pixels", {"features": space.help}, space.make("shipped"), pictures)


def _open(judge: str) -> tuple[Any, str]:
    name, _, path = judge.partition("=")
    if path and not Path(judge).exists() and not is_local(name):
        return load_eye(name, path), EYES[name].layers[-1] if name in EYES else "pooled"
    return load_classifier(judge), "pooled"


def _principal(centred: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest variances (C,), falling, and their axes (F, C), by the smaller Gram matrix."""
    n, width = centred.shape
    wide = n <= width
    gram = centred @ centred.T if wide else centred.T @ centred
    size = len(gram)
    squares, vectors = linalg.eigh(gram, subset_by_index=(max(size - count, 0), size - 1))
    squares, vectors = np.maximum(squares[::-1], 0.0), vectors[:, ::-1]
    if wide:
        vectors = centred.T @ vectors / np.sqrt(np.maximum(squares, 1e-300))
    return squares / n, vectors


def stack(parts: Sequence[np.ndarray], rows: np.ndarray) -> torch.Tensor:
    """Components of several targets side by side, a row a trial: (trials, sum of C) float64."""
    return torch.from_numpy(np.concatenate(parts, axis=1)[rows])
