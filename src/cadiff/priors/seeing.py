"""What is known of a picture when everything is: features that an eye sees, latents, and their coordinates.

Shapes: n pictures, E features of the eye, F coordinates; latents (n, c, h, w).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cadiff.errors import ConfigError
from cadiff.priors.load import ImagePrior
from cadiff.vision import load_classifier

ENCODED_AT_ONCE = 64


def see(prior: ImagePrior, images: np.ndarray, *, eye: str, eye_size: int) -> tuple[Tensor, Tensor]:
    """Pooled features (n, E) and scaled latents (n, c, h, w) of pictures uint8 (n, H, W, 3), of the prior's size."""
    classifier = load_classifier(eye)
    classifier.image_size = eye_size
    features = classifier.features(images, ("pooled",), progress=len(images) > 1000)["pooled"]
    prior.vqvae.to("cuda" if torch.cuda.is_available() else "cpu")  # pyright: ignore[reportArgumentType]
    latents = []
    for start in range(0, len(images), ENCODED_AT_ONCE):
        part = torch.from_numpy(np.ascontiguousarray(images[start : start + ENCODED_AT_ONCE]))
        latents.append(prior.encode(part.permute(0, 3, 1, 2).float() / 127.5 - 1).cpu())
    return torch.from_numpy(np.ascontiguousarray(features)).flatten(1).float(), torch.cat(latents)


@torch.no_grad()
def picture_coordinates(prior: ImagePrior, images: np.ndarray) -> Tensor:
    """Coordinates (n, F) of pictures uint8 (n, H, W, 3) for an adapted prior's `image_context`.

    Raises:
        ConfigError: the prior is not adapted.
    """
    context = prior.image_context
    if context is None:
        raise ConfigError(
            "This prior draws from labels alone: `cadiff prior adapt` makes one that draws from a picture's features."
        )
    features, latents = see(prior, images, eye=context.config["eye"], eye_size=context.config["eye_size"])
    return context.coordinates(features, latents)
