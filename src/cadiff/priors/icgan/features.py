"""What an instance-conditioned generator is conditioned on: pooled features of a picture, brought to unit length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor

from cadiff.config import Config
from cadiff.errors import ConfigError
from cadiff.eyes import EYES, load_eye
from cadiff.eyes.eye import Eye
from cadiff.vision import CLASSIFIERS, load_classifier

JUDGE = "efficientnet-lite2"
"""The default judge, whose features no generator may be trained on."""


class FeatureConfig(Config):
    """Which network looks at the instances."""

    eye: str = "efficientnet-lite0"
    """A classifier of cadiff, or an eye such as swav (SwAV's ResNet-50, the published one), whose weights are then given."""
    layer: str = "pooled"
    """Which of its layers; avgpool of swav."""
    sha256: str | None = None
    """Digest of the eye's weights, where they are a file."""

    @model_validator(mode="after")
    def _check(self) -> FeatureConfig:
        check_eye(self.eye)
        return self


def check_eye(name: str) -> None:
    """Raises `ValueError` for the judge, and for a name that is no eye."""
    if name == JUDGE:
        raise ValueError(
            f"{JUDGE} is the default judge: a generator that reads it would be scored by its own eye"
        )
    if name not in CLASSIFIERS and name not in EYES:
        raise ValueError(f"unknown eye {name!r}; there are {', '.join((*CLASSIFIERS, *EYES))}")


def open_eye(
    features: FeatureConfig, weights: str | Path | None, device: str | torch.device | None = None
) -> Eye:
    """The network that `features` names.

    Args:
        features: which network.
        weights: its file, for an eye that does not come with a package.
        device: CUDA where there is one by default.

    Raises:
        ConfigError: the file is not given, or is another one than the generator was trained with.
        ArtifactError: it cannot be read. MissingExtraError: the package is missing.
    """
    if features.eye in CLASSIFIERS:
        return load_classifier(features.eye, device)
    if weights is None:
        raise ConfigError(
            f"The generator reads features of {features.eye} ({EYES[features.eye].weights}), which does not come with cadiff: "
            "give that file as eye_weights."
        )
    eye = load_eye(features.eye, weights, device)
    found = next(iter(eye.digest().values()))
    if features.sha256 not in (None, found):
        raise ConfigError(
            f"{weights} is another file than the {features.eye} that the generator was trained with (sha256 {found[:12]}..., "
            f"expected {features.sha256[:12]}...): its features would mean something else."
        )
    return eye


def instance_features(eye: Eye, layer: str, images: np.ndarray, *, progress: bool = False) -> Tensor:
    """Pictures uint8 (n, H, W, 3) -> features (n, F) float32 of unit length.

    Raises:
        ConfigError: the eye has no such layer.
    """
    found = eye.features(images, (layer,), progress=progress)[layer]
    rows = torch.from_numpy(found.reshape(len(found), -1)).float()
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)


@torch.no_grad()
def nearest_neighbours(features: Tensor, count: int, *, rows_at_once: int = 1024) -> Tensor:
    """The other `count - 1` of each row's `count` nearest rows, itself included as in the released code: int64 (n, count - 1).

    Rows (n, F) are of unit length, so the nearest have the largest product.
    """
    count = min(count, len(features))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    everything = features.to(device)
    found = []
    for start in range(0, len(features), rows_at_once):
        near = everything[start : start + rows_at_once] @ everything.T
        here = torch.arange(len(near), device=device)
        near[here, start + here] = -torch.inf  # itself
        found.append(near.topk(count - 1, dim=1).indices.cpu())
    return torch.cat(found)
