"""What voxels are predicted from: features of pictures, by name.

    pixels                 red, green and blue of at most 32 x 32 pixels; for digits and other tiny or binary pictures
    gabor                  local Gabor energy, luminance and colour (Kay et al. 2008; `cadiff.data.gabor`)
    vq                     latents of the image prior's auto-encoder
    efficientnet-lite0     middle and late maps averaged to 2 x 2 places, and the pooled layer; so with lite1
    NAME=PATH              any network of `cadiff.eyes`: clip=/weights/clip, or a local classifier, at all of its layers

A network that scores the pictures must not choose them: the one that judges by default is refused.
Letters in shapes: n pictures, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cadiff.data import gabor
from cadiff.errors import ConfigError, DataError
from cadiff.evaluate.circular import digests
from cadiff.evaluate.settings import EvaluateConfig

LARGEST = 32
"""Pixels a side of the feature space `pixels`."""
NETWORK_SIZE = 160  # pixels a side that EfficientNet-Lite sees: 160 names 64-pixel photos as well as 224 (data/simulate.py)
JUDGE = EvaluateConfig.model_fields["judge"].default
BATCH = 256

Extract = Callable[[np.ndarray], np.ndarray]
"""uint8 (n, H, W, 3) -> float32 (n, F)."""


class FeatureSpace(NamedTuple):
    """One line of the table."""

    make: Callable[[str | Path], Extract]
    """Opens what it needs, given the image prior ("shipped" or a folder)."""
    standardise: bool
    """Whether each feature is put on one scale; pixels are not, or those that hardly ever change would count as much."""
    help: str


def _pixels(_: str | Path) -> Extract:
    def extract(images: np.ndarray) -> np.ndarray:
        side = min(LARGEST, *images.shape[1:3])
        if images.shape[1:3] != (side, side):
            images = np.stack(
                [np.asarray(Image.fromarray(i).resize((side, side), Image.Resampling.BOX)) for i in images]
            )
        return images.reshape(len(images), -1).astype(np.float32) / 255.0

    return extract


def _gabor(_: str | Path) -> Extract:
    return lambda images: gabor.local_channels(gabor.to_field(images)).reshape(len(images), -1)


def _vq(prior: str | Path) -> Extract:
    import torch

    from cadiff.priors.load import load_prior

    opened: Any = load_prior(prior)
    opened.vqvae.to("cuda" if torch.cuda.is_available() else "cpu")
    size = opened.image_size

    def extract(images: np.ndarray) -> np.ndarray:
        ready = torch.from_numpy(_resized(images, size)).permute(0, 3, 1, 2).float() / 127.5 - 1
        return opened.encode(ready).flatten(1).float().cpu().numpy()

    return extract


def _lite(name: str) -> Callable[[str | Path], Extract]:
    def make(_: str | Path) -> Extract:
        from cadiff.vision import load_classifier

        network = load_classifier(name)
        network.image_size = NETWORK_SIZE
        layers = ("middle", "late", "pooled")

        def extract(images: np.ndarray) -> np.ndarray:
            found = network.features(images, layers, pool=2)
            return np.concatenate([found[layer].reshape(len(images), -1) for layer in layers], axis=1)

        return extract

    return make


FEATURES: dict[str, FeatureSpace] = {
    "pixels": FeatureSpace(_pixels, False, "colours of at most 32 x 32 pixels"),
    "gabor": FeatureSpace(_gabor, True, "local Gabor energy, luminance and colour"),
    "vq": FeatureSpace(_vq, True, "latents of the image prior's auto-encoder"),
    "efficientnet-lite0": FeatureSpace(
        _lite("efficientnet-lite0"), True, "ImageNet classifier, the simulator's"
    ),
    "efficientnet-lite1": FeatureSpace(
        _lite("efficientnet-lite1"), True, "ImageNet classifier, a package of its own"
    ),
}


def find_space(name: str) -> FeatureSpace:
    """A feature space by name, or NAME=PATH of a network that lies here.

    Raises:
        ConfigError: no such name, or the default judge.
    """
    known, _, path = name.partition("=")
    if JUDGE in (known, path):
        raise ConfigError(
            f"{JUDGE} scores the pictures by default, and what scores must not choose: take other features "
            f"({', '.join(FEATURES)})."
        )
    if path:
        return FeatureSpace(lambda _: _eye(known, path), True, f"the network {known} in {path}")
    if name not in FEATURES:
        raise ConfigError(
            f"No feature space {name!r}; there are {', '.join(FEATURES)}, or NAME=PATH of a network (docs/judges.md)."
        )
    return FEATURES[name]


def find_spaces(names: Sequence[str]) -> dict[str, FeatureSpace]:
    """Several by name, none opened yet.

    Raises:
        ConfigError: none, one twice, or as `find_space`.
    """
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"features={list(names)}: give at least one feature space, each once.")
    return {name: find_space(name) for name in names}


def _eye(name: str, path: str) -> Extract:
    from cadiff.eyes import load_eye

    eye = load_eye(name, path)
    layers = [layer for layer in eye.layers if layer != "logits"]

    def extract(images: np.ndarray) -> np.ndarray:
        found = eye.features(images, layers, pool=2)
        return np.concatenate([found[layer].reshape(len(images), -1) for layer in layers], axis=1)

    return extract


def default_features(images: np.ndarray) -> tuple[str, ...]:
    """What suits these pictures: pixels for patterns in black and white, Gabor energy for tiny ones, else a classifier too."""
    if np.isin(images, (0, 255)).all():
        return ("pixels",)
    return ("gabor",) if max(images.shape[1:3]) <= LARGEST else ("gabor", "efficientnet-lite0")


@dataclass(frozen=True, eq=False)
class FeatureBlock:
    """A feature space and how its features were centred and scaled on the training pictures."""

    name: str
    mean: np.ndarray
    """(F,) float32."""
    scale: np.ndarray
    """(F,) float32, 0 where a feature never changed; the mean squared length of a training picture becomes 1."""

    @classmethod
    def fit(cls, name: str, features: np.ndarray) -> FeatureBlock:
        """Measures features (n, F) of the training pictures.

        Raises:
            DataError: the features are the same for all pictures.
        """
        mean, spread = features.mean(axis=0), features.std(axis=0)
        alive = spread > 1e-3 * spread.max(initial=0.0)
        if not alive.any():
            raise DataError(f"The features {name!r} are the same for all training pictures: take others.")
        scale = np.where(alive, 1.0 / np.where(alive, spread, 1.0), 0.0)
        if not find_space(name).standardise:
            scale = alive.astype(float)
        length = np.sqrt((((features - mean) * scale) ** 2).sum(axis=1).mean())
        return cls(name, mean.astype(np.float32), (scale / length).astype(np.float32))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(n, F) -> (n, F) float32."""
        return (features - self.mean) * self.scale


class Spaces:
    """Feature spaces that open their networks when they are first needed."""

    def __init__(self, names: Sequence[str], prior: str | Path = "shipped") -> None:
        self.names, self.prior = tuple(names), prior
        self._spaces = find_spaces(names)
        self._opened: dict[str, Extract] = {}

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """uint8 (n, H, W, 3) -> one float32 (n, F) a space."""
        return [self._extract(name, images) for name in self.names]

    def facts(self) -> dict[str, Any]:
        """`features`, their names; `feature_weights`, SHA-256 of those that are networks at a path, by name."""
        paths = {name: name.partition("=")[2] for name in self.names}
        weights = {name: digests(path) for name, path in paths.items() if path}
        return {"features": list(self.names), **({"feature_weights": weights} if weights else {})}

    def _extract(self, name: str, images: np.ndarray) -> np.ndarray:
        if name not in self._opened:
            self._opened[name] = self._spaces[name].make(self.prior)
        starts = range(0, len(images), BATCH)
        return np.concatenate([self._opened[name](images[start : start + BATCH]) for start in starts])


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 (n, H, W, 3) at size x size, bicubic."""
    if images.shape[1:3] == (size, size):
        return np.ascontiguousarray(images)
    shape = (size, size)
    return np.stack([np.asarray(Image.fromarray(i).resize(shape, Image.Resampling.BICUBIC)) for i in images])
