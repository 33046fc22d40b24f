"""Bayesian decoding: pictures from anywhere, each weighed by how likely the measured betas are under it.

    p(picture | betas)  proportional to  p(betas | picture)^T p(picture)

The likelihood is an encoding model's (`cadiff.encoding`), the prior a set of pictures that are equally probable, and the
temperature T is measured on held-out training stimuli: for a mean so that it is nearest to the stimulus, else so that
probabilities are right. After Naselaris et al. 2009 (Neuron 63:902), who looked for the most
likely among six million photos.

m test rows, V voxels, k pictures of the prior, s samples a row, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from cadiff.baselines.fitted import State, put, take
from cadiff.baselines.labels import Drawing
from cadiff.data.dataset import BrainDataset
from cadiff.encoding import EncodingModel
from cadiff.encoding.pictures import first_side, refuse_test_stimuli, shown_pictures
from cadiff.errors import ConfigError, DataError
from cadiff.priors.images import PICTURES, Fit, to_square
from cadiff.priors.load import load_prior

Output = Literal["mean", "map", "samples"]
MAX_DISTRACTORS = 2000
SLICE = 1 << 24
"""Numbers of the pictures that are in float32 at a time."""


@dataclass(frozen=True)
class Bayes:
    """Pictures of a prior weighed by their posterior."""

    model: EncodingModel
    images: np.ndarray
    """uint8 (k, H, W, 3)."""
    output: Output
    num_images: int
    seed: int

    @classmethod
    def fit(
        cls,
        dataset: BrainDataset,
        rows: np.ndarray,
        *,
        images: Literal["training", "prior"] | str | Path = "training",
        output: Output = "mean",
        num_images: int = 5,
        features: str | Sequence[str] | None = None,
        min_r2: float | None = None,
        prior: str | Path = "shipped",
        num_pictures: int | None = None,
        fit: Fit = "resize",
        size: int | None = None,
        seed: int = 0,
    ) -> Bayes:
        """Fits the encoding model on training trials.

        Args:
            images: the pictures that may have been seen: "training" (those of the training trials), "prior" (drawn by the image
                prior from its labels, all alike), a folder of pictures ("./training" where it is called like a word), or an
                .npz with `images` (k, H, W[, 3]) uint8.
            output: their posterior mean, the most probable one (map), or `num_images` of them drawn by their probability.
            features: what voxels are predicted from, see `EncodingModel.fit`; so `min_r2`.
            prior: of images=prior, and of the features `vq`.
            num_pictures: so many of them, drawn by `seed`; all by default, 500 of images=prior.
            fit: how pictures come to the stimuli's size: resize, or pad (small pictures on black, as digits).
            size: side of the pictures in pixels; that of the stimuli when absent.
            seed: of every draw.

        Raises:
            DataError: a test stimulus is among the pictures, or they cannot be read.
            ConfigError: an unknown output.
        """
        if output not in get_args(Output):
            raise ConfigError(f"output={output!r}; expected one of {', '.join(get_args(Output))}.")
        shown = [str(name) for name in dataset.trials["stimulus_id"].to_numpy()[rows]]
        side = size or first_side(dataset, shown)
        rng = np.random.default_rng(seed)
        if images == "training":
            pictures = shown_pictures(dataset, list(dict.fromkeys(shown)), side)
        elif images == "prior":
            pictures = _drawn(prior, num_pictures or 500, side, seed)
        else:
            pictures = _read(Path(images), side, fit, num_pictures, rng)
        refuse_test_stimuli(pictures, dataset, side, f"images={images}")
        own = images == "training"
        some = rng.choice(len(pictures), min(MAX_DISTRACTORS, len(pictures)), replace=False)
        model = EncodingModel.fit(
            dataset,
            rows,
            features=[features] if isinstance(features, str) else features,
            prior=prior,
            size=side,
            min_r2=min_r2,
            distractors=None if own else pictures[np.sort(some)],
            seed=seed,
        )
        return cls(model, pictures, output, num_images, seed)

    def reconstruct(
        self, betas: np.ndarray, *, stimulus_ids: Sequence[str], repeats: np.ndarray
    ) -> np.ndarray:
        """Raw betas (m, V) -> uint8 (m, s, H, W, 3); s is 1 but for samples."""
        weights = self.posterior(betas, repeats)
        if self.output == "map":
            return self.images[weights.argmax(axis=1)][:, None]
        if self.output == "samples":
            draws = [
                np.random.default_rng([self.seed, i]).choice(len(row), self.num_images, p=row)
                for i, row in enumerate(weights)
            ]
            return self.images[np.array(draws)]
        flat, weights = self.images.reshape(len(self.images), -1), weights.astype(np.float32)
        means = np.empty((len(weights), flat.shape[1]), np.uint8)
        width = max(1, SLICE // len(flat))
        for part in (slice(start, start + width) for start in range(0, flat.shape[1], width)):
            means[:, part] = np.rint(weights @ flat[:, part].astype(np.float32)).clip(0, 255)
        return means.reshape(-1, 1, *self.images.shape[1:])

    def posterior(self, betas: np.ndarray, repeats: int | np.ndarray = 1) -> np.ndarray:
        """Raw betas (m, V) -> probabilities (m, k)."""
        likelihood = self.model.log_likelihood_of(betas, self._predicted, repeats)
        return self.model.weights(likelihood, of_mean=self.output == "mean")

    @cached_property
    def _predicted(self) -> np.ndarray:
        return self.model.predict(self.images)

    def facts(self) -> dict[str, Any]:
        """The encoding model's, and how many pictures there are to weigh."""
        return {"pictures": len(self.images), **self.model.facts}

    def state(self) -> State:
        """See `Baseline.state`."""
        own = {key: getattr(self, key) for key in ("output", "num_images", "seed")}
        tensors = put("encoding", self.model.to_tensors())
        return State(
            {**own, "encoding": self.model.to_config()}, {**tensors, "images": torch.from_numpy(self.images)}
        )

    @classmethod
    def from_state(cls, state: State, dataset: BrainDataset) -> Bayes:
        """See `Baseline.from_state`."""
        config, tensors = dict(state.config), state.tensors
        model = EncodingModel.from_tensors(config.pop("encoding"), take("encoding", tensors))
        images = tensors["images"].numpy()
        refuse_test_stimuli(images, dataset, images.shape[1], "the saved model")
        return cls(model, images, **config)


def _drawn(prior: str | Path, count: int, side: int, seed: int) -> np.ndarray:
    """Pictures (count, side, side, 3) that the image prior draws from its labels, every label as often as others."""
    opened = load_prior(prior)
    if opened.label_embedding is None:
        raise DataError("This prior has no label_embedding.safetensors, so nothing can be drawn from labels.")
    labels = torch.arange(count) % max(len(opened.classes), 1)
    draw = Drawing(opened, 1, 20, scheduler="dpm++", seed=seed)
    found = draw(opened.label_embedding.float()[labels])[:, 0]
    return np.stack([to_square(picture, side, "resize") for picture in found])


def _read(
    source: Path, side: int, fit: Fit, num_pictures: int | None, rng: np.random.Generator
) -> np.ndarray:
    """Pictures (k, side, side, 3) of a folder or an .npz."""
    if source.suffix == ".npz" and source.is_file():
        try:
            with np.load(source, allow_pickle=False) as archive:
                found: Any = archive["images"]
        except (KeyError, ValueError, OSError) as error:
            raise DataError(
                f"{source} cannot be read ({error}): expected an array `images` of uint8 (k, H, W[, 3])."
            ) from None
        if found.dtype != np.uint8 or found.ndim not in (3, 4):
            raise DataError(
                f"{source}: images are {found.dtype} {found.shape}, expected uint8 (k, H, W[, 3])."
            )
    elif source.is_dir():
        found = sorted(path for path in source.rglob("*") if path.suffix.lower() in PICTURES)
    else:
        raise DataError(
            f"images={str(source)!r} is neither a folder of pictures nor an .npz; other choices are training and prior."
        )
    if not len(found):
        raise DataError(f"{source} holds no picture.")
    if num_pictures is not None and num_pictures < len(found):
        found = [found[i] for i in np.sort(rng.choice(len(found), num_pictures, replace=False))]
    return np.stack([to_square(_open(item), side, fit, name=f"A picture of {source}") for item in found])


def _open(item: np.ndarray | Path) -> np.ndarray:
    if isinstance(item, np.ndarray):
        return item
    try:
        with Image.open(item) as picture:
            return np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{item} cannot be read as a picture ({error}): replace it or remove it.") from None
