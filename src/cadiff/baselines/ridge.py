"""Linear decoders: ridge regression from voxels to pixels, to the latents of an image prior, to features of pictures.

The penalty is chosen by cross-validation inside the training trials, folds grouped by stimulus (`fit_ridge`). Targets are
principal components of the training pictures (or latents, or features): ridge predictions lie in the span of the training
targets, so nothing is lost and it is far cheaper than a regression per pixel.
n trials, m test rows, V voxels, H x W pixels; pictures are uint8 (m, 1, H, W, 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cadiff.baselines.fitted import (
    State,
    check_prior,
    preprocessor_of,
    preprocessor_state,
    prior_state,
    put,
    take,
)
from cadiff.data.dataset import BrainDataset
from cadiff.data.preprocess import PreprocessConfig, Preprocessor
from cadiff.diffuse.latents import to_unit_range
from cadiff.diffuse.pipeline import to_uint8
from cadiff.diffuse.start import LatentStart
from cadiff.encoding.features import FeatureBlock, Spaces, default_features
from cadiff.encoding.pictures import shown_pictures
from cadiff.evaluate.pixel import correlations
from cadiff.priors.load import ImagePrior, load_prior


@dataclass(frozen=True)
class RidgePixels:
    """pixels = betas @ weight + bias."""

    preprocessor: Preprocessor
    start: LatentStart
    shape: tuple[int, ...]
    """(H, W, 3)."""
    ridge: dict[str, Any]
    """The penalty chosen and its held-out fraction of variance explained."""

    @classmethod
    def fit(
        cls,
        dataset: BrainDataset,
        rows: np.ndarray,
        *,
        size: int | None = None,
        num_components: int | None = None,
        per_target: bool = False,
        match_repeat_spread: bool = True,
        seed: int = 0,
    ) -> RidgePixels:
        """Fits on training trials.

        Args:
            size: side of the pictures in pixels; when absent as they are, or the first's where they differ or are no squares.
            num_components: principal components of the training pictures to predict; all of them when absent. Each is as large
                as a picture in float32, in memory and in the saved model.
            per_target: a penalty for every component instead of one for all.
            match_repeat_spread: rescale averages of repeats to the spread of single trials, where noise ceilings are known.
            seed: of the cross-validation folds.
        """
        preprocessor, betas, ids = prepare(dataset, rows, match_repeat_spread)
        names, which = _distinct(ids)
        pictures = shown_pictures(dataset, names, size)
        options = {"num_components": num_components, "seed": seed, "per_target": per_target}
        start, ridge = LatentStart.fit(betas, pictures, ids, which, scale=1 / 255, **options)
        return cls(preprocessor, start, pictures.shape[1:], ridge.facts())

    def reconstruct(
        self, betas: np.ndarray, *, stimulus_ids: Sequence[str], repeats: np.ndarray
    ) -> np.ndarray:
        """Raw betas (m, V) -> uint8 (m, 1, H, W, 3), clipped."""
        pixels = self.predict(betas, repeats=repeats)
        return np.rint(pixels.clip(0.0, 1.0) * 255.0).astype(np.uint8)[:, None]

    def predict(self, betas: np.ndarray, *, repeats: np.ndarray | None = None) -> np.ndarray:
        """Raw betas (m, V) -> float32 (m, H, W, 3), about [0, 1], not clipped."""
        flat = self.start(torch.from_numpy(self.preprocessor(betas, repeats)))
        return flat.numpy().reshape(-1, *self.shape)

    def facts(self) -> dict[str, Any]:
        """Penalty and held-out score."""
        return self.ridge

    def state(self) -> State:
        """See `Baseline.state`."""
        return _state(self.preprocessor, self.start, {"shape": list(self.shape), "ridge": self.ridge})

    @classmethod
    def from_state(cls, state: State, dataset: BrainDataset) -> RidgePixels:
        """See `Baseline.from_state`."""
        return cls(*_parts(state), tuple(state.config["shape"]), state.config["ridge"])


@dataclass(frozen=True)
class RidgeLatents:
    """latents = betas @ weight + bias, decoded by the image prior's auto-encoder: no diffusion."""

    preprocessor: Preprocessor
    start: LatentStart
    prior: ImagePrior
    ridge: dict[str, Any]
    """As in `RidgePixels`."""

    @classmethod
    def fit(
        cls,
        dataset: BrainDataset,
        rows: np.ndarray,
        *,
        prior: str | Path = "shipped",
        num_components: int | None = None,
        per_target: bool = False,
        match_repeat_spread: bool = True,
        seed: int = 0,
    ) -> RidgeLatents:
        """Fits on training trials; options as in `RidgePixels`, of the latents of `prior`."""
        preprocessor, betas, ids = prepare(dataset, rows, match_repeat_spread)
        opened = _on_device(load_prior(prior))
        names, which = _distinct(ids)
        latents = opened.encode(to_unit_range(dataset.images(names, opened.image_size))).cpu()
        options = {"num_components": num_components, "seed": seed, "per_target": per_target}
        start, ridge = LatentStart.fit(betas, latents, ids, which, **options)
        return cls(preprocessor, start, opened, ridge.facts())

    def reconstruct(
        self, betas: np.ndarray, *, stimulus_ids: Sequence[str], repeats: np.ndarray
    ) -> np.ndarray:
        """Raw betas (m, V) -> uint8 (m, 1, H, W, 3)."""
        flat = self.start(torch.from_numpy(self.preprocessor(betas, repeats)))
        return to_uint8(self.prior.decode(flat.unflatten(1, self.prior.latent_shape)))[:, None]

    def facts(self) -> dict[str, Any]:
        """Penalty and held-out score."""
        return self.ridge

    def state(self) -> State:
        """See `Baseline.state`; the prior is named, not copied."""
        return _state(self.preprocessor, self.start, {"ridge": self.ridge, **prior_state(self.prior)})

    @classmethod
    def from_state(cls, state: State, dataset: BrainDataset) -> RidgeLatents:
        """See `Baseline.from_state`."""
        return cls(*_parts(state), _on_device(check_prior(state)), state.config["ridge"])


@dataclass(frozen=True)
class RidgeRetrieval:
    """The training picture whose features correlate best with the features that ridge predicts from the betas."""

    preprocessor: Preprocessor
    start: LatentStart
    features: np.ndarray
    """(pictures, F) float32, scaled, of the training pictures."""
    images: np.ndarray
    """uint8 (pictures, H, W, 3)."""
    ridge: dict[str, Any]
    """As in `RidgePixels`, and the features."""

    @classmethod
    def fit(
        cls,
        dataset: BrainDataset,
        rows: np.ndarray,
        *,
        features: str | Sequence[str] | None = None,
        prior: str | Path = "shipped",
        size: int | None = None,
        num_components: int | None = None,
        per_target: bool = True,
        match_repeat_spread: bool = True,
        seed: int = 0,
    ) -> RidgeRetrieval:
        """Fits on training trials; `features` as in `EncodingModel.fit`, the other options as in `RidgePixels`."""
        preprocessor, betas, ids = prepare(dataset, rows, match_repeat_spread)
        names, which = _distinct(ids)
        images = shown_pictures(dataset, names, size)
        asked = [features] if isinstance(features, str) else features
        spaces = Spaces(asked or default_features(images), prior)
        found = zip(spaces.names, spaces(images), strict=True)
        table = np.concatenate([FeatureBlock.fit(name, part)(part) for name, part in found], axis=1)
        options = {"num_components": num_components, "seed": seed, "per_target": per_target}
        start, ridge = LatentStart.fit(betas, table, ids, which, **options)
        return cls(preprocessor, start, table, images, {**spaces.facts(), **ridge.facts()})

    def reconstruct(
        self, betas: np.ndarray, *, stimulus_ids: Sequence[str], repeats: np.ndarray
    ) -> np.ndarray:
        """Raw betas (m, V) -> uint8 (m, 1, H, W, 3)."""
        predicted = self.start(torch.from_numpy(self.preprocessor(betas, repeats))).numpy()
        return self.images[correlations(predicted, self.features).argmax(axis=1)][:, None]

    def facts(self) -> dict[str, Any]:
        """Features, penalties and held-out score."""
        return self.ridge

    def state(self) -> State:
        """See `Baseline.state`."""
        own = _state(self.preprocessor, self.start, {"ridge": self.ridge})
        pictures = {"features": torch.from_numpy(self.features), "images": torch.from_numpy(self.images)}
        return State(own.config, own.tensors | pictures)

    @classmethod
    def from_state(cls, state: State, dataset: BrainDataset) -> RidgeRetrieval:
        """See `Baseline.from_state`."""
        features, images = (state.tensors[key].numpy() for key in ("features", "images"))
        return cls(*_parts(state), features, images, state.config["ridge"])


def prepare(
    dataset: BrainDataset, rows: np.ndarray, match_repeat_spread: bool
) -> tuple[Preprocessor, Tensor, list[str]]:
    """Preprocessing fitted on the rows, their betas (n, V), their stimulus ids (n,)."""
    config = PreprocessConfig(match_repeat_spread=match_repeat_spread)
    betas = dataset.betas[rows]
    ceiling = dataset.voxels["noise_ceiling"].to_numpy(dtype=float)
    preprocessor = Preprocessor.fit(betas, config, patch_size=1, noise_ceiling=ceiling)
    ids = [str(i) for i in dataset.trials["stimulus_id"].to_numpy()[rows]]
    return preprocessor, torch.from_numpy(preprocessor(betas)), ids


def _distinct(ids: Sequence[str]) -> tuple[list[str], Tensor]:
    """The distinct stimuli, and for each trial which of them it shows."""
    names = list(dict.fromkeys(ids))
    place = {name: i for i, name in enumerate(names)}
    return names, torch.tensor([place[i] for i in ids])


def _state(preprocessor: Preprocessor, start: LatentStart, config: dict[str, Any]) -> State:
    own = preprocessor_state(preprocessor)
    return State(own.config | config, own.tensors | put("start", vars(start)))


def _parts(state: State) -> tuple[Preprocessor, LatentStart]:
    return preprocessor_of(state), LatentStart(**take("start", state.tensors))


def _on_device(prior: ImagePrior) -> ImagePrior:
    torch.nn.Module.to(prior.vqvae, "cuda" if torch.cuda.is_available() else "cpu")
    return prior
