"""The targets of tuning: latents of the stimuli, encoded once.

The published augmentation crops a random 80 % square in half of the draws and resizes it back. A finite set of crops a
picture (the whole one first) makes the encoder's work a matter of minutes instead of part of every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor, nn

from cadiff.data.dataset import BrainDataset
from cadiff.priors.load import ImagePrior


def crop_latents(
    dataset: BrainDataset,
    stimulus_ids: Sequence[str],
    prior: ImagePrior,
    *,
    num_crops: int,
    crop_ratio: float,
    seed: int,
) -> Tensor:
    """Latents (stimuli, 1 + num_crops, c, h, w) on the CPU: the whole picture, then its crops.

    Args:
        crop_ratio: share of the side that a crop loses; a crop is resized back to the full size.
        seed: of the crop positions; each picture's depend on its own id alone.
    """
    vqvae: nn.Module = prior.vqvae
    vqvae.to(device="cuda" if torch.cuda.is_available() else "cpu", memory_format=torch.channels_last)  # pyright: ignore
    rows = []
    for stimulus_id in track(stimulus_ids, description="stimuli to latents", transient=True):
        picture = dataset.images([stimulus_id], size=prior.image_size)[0]
        views = np.stack([picture, *_crops(picture, num_crops, crop_ratio, [seed, *stimulus_id.encode()])])
        rows.append(prior.encode(to_unit_range(views)).cpu())
    return torch.stack(rows)


def to_unit_range(images: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _crops(picture: np.ndarray, count: int, ratio: float, seed: Sequence[int]) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    size = len(picture)
    side = size - int(ratio * size)
    for _ in range(count):
        top, left = rng.integers(0, size - side + 1, 2)
        crop = Image.fromarray(picture[top : top + side, left : left + side])
        yield np.asarray(crop.resize((size, size), Image.Resampling.BICUBIC))
