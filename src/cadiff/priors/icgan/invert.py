"""Noise and dense vectors from which a generator redraws given pictures: targets of the regressions of Ozcelik et al. 2022.

For each picture x with features h, by Adam (Kingma & Ba 2015) from z = 0, and then from d = dense(z):
    z = argmin |G(z, h) - x|^2 + w_p P(G(z, h), x) + w_z |z|^2 / Z      then      d = argmin |G(z, h, d) - x|^2 + w_p P(...)
|.|^2 is the mean over pixels, P the distance of EfficientNet-Lite0's maps (`cadiff.priors.perceptual`). The paper's own inversion
was never released; its noise and dense vectors exist as a file only. Every picture starts at the same point, so that what is
found varies with the picture and not with the start, which is what a regression needs. Pictures do not touch each other: how
they are put in batches changes nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from cadiff.config import Config
from cadiff.priors.icgan.networks import Generator
from cadiff.priors.perceptual import PerceptualDistance
from cadiff.priors.train_vq import to_range


class InversionConfig(Config):
    """How long and how hard to look."""

    noise_steps: int = Field(default=200, ge=1)
    """Steps for the noise."""
    dense_steps: int = Field(default=100, ge=0)
    """Steps for the dense vectors, from those of the noise that was found."""
    learning_rate: float = Field(default=0.05, gt=0)
    """Of Adam, for both."""
    perceptual_weight: float = Field(default=0.1, ge=0)
    """w_p; 0 for pictures that are not photos."""
    noise_weight: float = Field(default=0.01, ge=0)
    """w_z: keeps the noise where the generator knows it."""
    batch_size: int = Field(default=32, ge=1)
    """Pictures at once."""


class Inverted(NamedTuple):
    """What was found for n pictures."""

    noise: Tensor
    """(n, Z)."""
    dense: Tensor
    """(n, W)."""
    errors: dict[str, float]
    """Mean squared error on [-1, 1] at the start, with the noise, with the dense vectors."""


def invert(
    generator: Generator,
    images: np.ndarray,
    features: Tensor,
    config: InversionConfig,
    *,
    progress: bool = False,
) -> Inverted:
    """Pictures uint8 (n, S, S, 3) with features (n, F) -> noise and dense vectors."""
    device = next(generator.parameters()).device
    distance = PerceptualDistance(max(64, generator.config.image_size)) if config.perceptual_weight else None
    parts: list[tuple[Tensor, ...]] = []
    starts = range(0, len(images), config.batch_size)
    for start in tqdm(
        starts, desc="inverting", unit="batch", disable=None if progress else True, leave=False
    ):
        part = slice(start, start + config.batch_size)
        target = to_range(torch.from_numpy(images[part]).to(device))
        found = _invert(generator, target, features[part].to(device), distance, config)
        parts.append(tuple(value.cpu() for value in found))
    noise, dense, errors = (torch.cat(part) for part in zip(*parts, strict=True))
    means = (round(value, 5) for value in errors.mean(0).tolist())
    return Inverted(noise, dense, dict(zip(("start", "noise", "dense"), means, strict=True)))


def _invert(
    generator: Generator,
    target: Tensor,
    features: Tensor,
    distance: PerceptualDistance | None,
    config: InversionConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Noise (B, Z), dense vectors (B, W) and errors (B, 3) of one batch."""

    def error(drawn: Tensor) -> Tensor:
        """Of each picture (B,)."""
        return (drawn - target).square().mean((1, 2, 3))

    def loss(drawn: Tensor) -> Tensor:
        likeness = len(target) * distance(drawn, target) if distance is not None else 0.0
        return error(drawn).sum() + config.perceptual_weight * likeness

    def noise_loss(noise: Tensor) -> Tensor:
        return loss(generator(noise, features)) + config.noise_weight * noise.square().mean(1).sum()

    start = torch.zeros(len(target), generator.config.noise_dim, device=target.device)
    noise = _descend(start, noise_loss, config.noise_steps, config.learning_rate)
    with torch.no_grad():
        first = generator.dense(noise)
    dense = _descend(
        first, lambda value: loss(generator(noise, features, value)), config.dense_steps, config.learning_rate
    )
    with torch.no_grad():
        drawn = (generator(start, features), generator(noise, features), generator(noise, features, dense))
        return noise, dense, torch.stack([error(pictures) for pictures in drawn], dim=1)


def _descend(start: Tensor, loss: Callable[[Tensor], Tensor], steps: int, learning_rate: float) -> Tensor:
    value = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([value], lr=learning_rate)
    for _ in range(steps):
        (value.grad,) = torch.autograd.grad(loss(value), value)
        optimizer.step()
    return value.detach()
