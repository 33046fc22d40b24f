"""The targets of tuning: latents of the stimuli, encoded once, and kept on disk for the next training (`cadiff.frozen`).

The published augmentation crops a random 80 % square in half of the draws and resizes it back. A finite set of crops a
picture (the whole one first) makes the encoder's work a matter of minutes instead of part of every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor, nn

from cadiff.artifacts import sha256_file
from cadiff.data.dataset import BrainDataset
from cadiff.frozen import kept
from cadiff.priors.load import ImagePrior

MOST_VIEWS, MOST_PIXELS = 64, 2**20  # at once on a GPU: 64 views of up to 128 pixels, 16 of 256


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
    about = {
        "pictures": [(stimulus_id, _picture_digest(dataset, stimulus_id)) for stimulus_id in stimulus_ids],
        "size": prior.image_size,
        "framing": "middle square",
        "scaling_factor": prior.scaling_factor,
        "crops": [num_crops, crop_ratio, seed] if num_crops else [],
    }

    def views(stimulus_id: str) -> np.ndarray:
        picture = dataset.images([stimulus_id], size=prior.image_size)[0]
        return np.stack([picture, *_crops(picture, num_crops, crop_ratio, [seed, *stimulus_id.encode()])])

    return kept("latents", prior.vqvae, about, lambda: _encoded(prior, stimulus_ids, views, 1 + num_crops))


def _encoded(
    prior: ImagePrior, stimulus_ids: Sequence[str], views: Callable[[str], np.ndarray], count: int
) -> Tensor:
    """Latents (stimuli, count, c, h, w) of `views`, uint8 (count, H, W, 3) of a stimulus."""
    vqvae: nn.Module = prior.vqvae
    on_gpu = torch.cuda.is_available()
    vqvae.to(device="cuda" if on_gpu else "cpu", memory_format=torch.channels_last)  # pyright: ignore
    # many pictures at once keep a GPU busy; a CPU is no faster with them, and they change its last bits
    most = min(MOST_VIEWS, max(1, MOST_PIXELS // prior.image_size**2)) if on_gpu else count
    together = max(1, most // count)
    latents = torch.empty(len(stimulus_ids), count, *prior.latent_shape)
    starts = range(0, len(stimulus_ids), together)
    for start in track(starts, description="stimuli to latents", transient=True):
        part = slice(start, start + together)
        stacked = np.concatenate([views(stimulus_id) for stimulus_id in stimulus_ids[part]])
        latents[part] = prior.encode(to_unit_range(stacked), batch_size=most).cpu().unflatten(0, (-1, count))
    return latents


def _picture_digest(dataset: BrainDataset, stimulus_id: str) -> str | None:
    """Of the file as it is now: it may have been changed since the dataset was written."""
    file = dataset.stimuli["file"].get(stimulus_id)
    path = dataset.folder / "stimuli" / str(file)
    return sha256_file(path) if path.is_file() else None  # reading it will say what is wrong


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
