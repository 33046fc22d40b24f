"""Errors of SS-AE and the penalties on its weights.

Voxels (both released codes): error + 0.1 (1 - cosine), the error squared while the encoder learns,
absolute and weighted by each voxel's SNR while the decoder does. Pictures (Gaziv et al. 2022): 1 - cosine of the eye's maps at
each place, absolute error of pixels over their mean, total variation. B pictures or trials, V voxels, C channels, s x s places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cadiff.baselines.ssae.decoder import Decoder
from cadiff.baselines.ssae.encoder import Encoder
from cadiff.baselines.ssae.settings import PUBLISHED_VOXELS

NEIGHBOURS = 0.5
"""Share of the neighbouring places in the group lasso."""
TINY = 1e-12


def voxel_loss(
    predicted: Tensor, measured: Tensor, *, cosine_weight: float, weights: Tensor | None = None
) -> Tensor:
    """Scalar of responses (B, V).

    Args:
        weights: (V,) of mean 1: the error is absolute and weighted by them; squared and unweighted without.
    """
    difference = predicted.float() - measured
    error = difference.square() if weights is None else weights * difference.abs()
    return (
        error.mean() + cosine_weight * (1.0 - F.cosine_similarity(predicted.float(), measured, dim=1)).mean()
    )


@dataclass(frozen=True)
class ImageLoss:
    """Distance of pictures (B, 3, S, S) in [0, 1], of which the eye's maps are known as well."""

    perceptual_weights: Sequence[float]
    pixel_weight: float
    tv_weight: float
    pixel_mean: Tensor
    """(3, 1, 1): mean of the training pictures, by which errors of pixels are divided."""

    def __call__(
        self, drawn: Tensor, shown: Tensor, drawn_maps: Sequence[Tensor], shown_maps: Sequence[Tensor]
    ) -> Tensor:
        """Scalar."""
        loss = self.pixel_weight * ((drawn - shown).abs() / self.pixel_mean).mean()
        loss = loss + self.tv_weight * total_variation(drawn)
        for weight, ours, theirs in zip(self.perceptual_weights, drawn_maps, shown_maps, strict=True):
            if weight:
                alike = F.cosine_similarity(ours.float(), theirs.float(), dim=1, eps=1e-6)
                loss = loss + weight * (1.0 - alike).mean()
        return loss


def total_variation(images: Tensor) -> Tensor:
    """Mean of (dx^2 + dy^2)^1.25 over places; both released codes."""
    down = images[..., 1:, :-1] - images[..., 1:, 1:]
    right = images[..., :-1, 1:] - images[..., 1:, 1:]
    return (down.square() + right.square()).pow(1.25).mean()


def encoder_penalty(encoder: Encoder) -> Tensor:
    """Places few, together and near each other; channels few; small kernels. Means over voxels of the published sums."""
    total = 1e-4 * sum(conv.weight.abs().sum() for conv in _convs(encoder))
    for space in encoder.space.values():
        side = round(space.shape[1] ** 0.5)
        maps = space.unflatten(1, (side, side))
        near = (_neighbours(maps.square()) + TINY).sqrt()
        few = 5e-6 * maps.abs().sum(dim=(1, 2)) + 1e-5 * near.sum(dim=(1, 2))
        total = total + PUBLISHED_VOXELS * few.mean() + 10.0 * spread(maps.square()).mean() / (2 * side)
    for mix in encoder.mixes:
        total = total + 5e-6 * PUBLISHED_VOXELS * mix.abs().sum(dim=1).mean()
    return torch.as_tensor(total)


def decoder_penalty(decoder: Decoder, unreliability: Tensor) -> Tensor:
    """Group lasso of the linear layer, and small kernels.

    The published means over voxels are kept as sums over them, so that a place feels the same strength with any number of voxels.

    Args:
        unreliability: (V,) of mean 1, one over the SNR: unreliable voxels pay more.
    """
    places = decoder.places()  # (V, C, s, s)
    squares = places.square()
    groups = (squares + NEIGHBOURS * _neighbours(squares)) / (1.0 + NEIGHBOURS)
    lasso = (places.abs() * unreliability[:, None, None, None]).mean()
    group = (groups.mean(dim=1) + TINY).sqrt().mean()
    kernels = sum(conv.weight.abs().sum() for conv in _convs(decoder))
    return len(places) / PUBLISHED_VOXELS * (40.0 * lasso + 400.0 * group) + 1e-4 * kernels


def spread(mass: Tensor) -> Tensor:
    """Second moment of masses (V, s, s) around their own centre, in places squared: (V,)."""
    place = torch.arange(mass.shape[-1], device=mass.device, dtype=mass.dtype)
    whole = mass.sum(dim=(1, 2))
    total = torch.zeros_like(whole)
    for axis in (mass.sum(dim=2), mass.sum(dim=1)):  # (V, s)
        centre = (axis * place).sum(dim=1, keepdim=True) / (whole[:, None] + TINY)
        total = total + (axis * (place - centre).square()).sum(dim=1)
    return total


def _neighbours(values: Tensor) -> Tensor:
    """Mean of the four neighbours of each place of (..., s, s); outside, the edge counts again."""
    up, down = values[..., :1, :], values[..., -1:, :]
    left, right = values[..., :1], values[..., -1:]
    vertical = torch.cat([up, values[..., :-1, :]], dim=-2) + torch.cat([values[..., 1:, :], down], dim=-2)
    horizontal = torch.cat([left, values[..., :-1]], dim=-1) + torch.cat([values[..., 1:], right], dim=-1)
    return (vertical + horizontal) / 4.0


def _convs(module: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
