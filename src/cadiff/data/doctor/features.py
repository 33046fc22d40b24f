"""What voxels may follow: low-resolution pixels, Gabor energy, classes, and a network's features as a last resort."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from cadiff.data import gabor
from cadiff.data.doctor.encoding import kernel
from cadiff.data.doctor.folder import Folder
from cadiff.data.files import inside, load_picture
from cadiff.errors import UserError
from cadiff.framing import framed

PIXELS = 12
ENERGY_PLACES = 8  # a side, at which Gabor energies are kept
SIMPLE = ("pixels", "Gabor energy")
"""Names of the kernels that every picture has."""
CLASSIFIER, CLASSIFIER_SIZE = "efficientnet-lite0", 128


def load_field(folder: Folder, stimulus_ids: Sequence[str]) -> np.ndarray:
    """Pictures uint8 (m, FIELD, FIELD, 3) at the size that the Gabor filters take."""
    pictures = []
    for name in stimulus_ids:
        picture = load_picture(inside(folder.path / "stimuli", str(folder.stimuli.at[name, "file"])))
        pictures.append(framed(picture, (gabor.FIELD, gabor.FIELD)))
    return np.stack(pictures)


def picture_features(pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Features (m, F) of pictures uint8 (m, FIELD, FIELD, 3): pixels, and Gabor energy with luminance and colour."""
    small = [
        np.asarray(Image.fromarray(picture).resize((PIXELS, PIXELS), Image.Resampling.BOX))
        for picture in pictures
    ]
    channels = gabor.local_channels(pictures)
    step = gabor.GRID // ENERGY_PLACES
    grid = channels.reshape(*channels.shape[:2], ENERGY_PLACES, step, ENERGY_PLACES, step).mean(axis=(3, 5))
    flat = (values.reshape(len(pictures), -1) for values in (np.stack(small).astype(np.float32), grid))
    return dict(zip(SIMPLE, flat, strict=True))


def label_kernel(labels: Sequence[object]) -> dict[str, np.ndarray]:
    """Kernel (m, m) of classes, or nothing where hardly any class has two stimuli."""
    names = np.array([label if isinstance(label, str) else f"\0{i}" for i, label in enumerate(labels)])
    classes, member, sizes = np.unique(names, return_inverse=True, return_counts=True)
    if len(classes) < 2 or (sizes[member] > 1).mean() < 0.5:
        return {}
    return {"classes": kernel(np.eye(len(classes), dtype=np.float32)[member])}


def network_kernels(pictures: np.ndarray, progress: bool = False) -> dict[str, np.ndarray]:
    """Kernels (m, m) of a network's middle and last features; nothing where it is not installed."""
    try:
        from cadiff.vision import load_classifier  # imports torch

        classifier: Any = load_classifier(CLASSIFIER)
    except (UserError, ImportError):
        return {}
    classifier.image_size = CLASSIFIER_SIZE
    found = classifier.features(pictures, ("middle", "late"), pool=2, progress=progress)
    return {f"{layer} network features": kernel(values) for layer, values in found.items()}
