"""Pictures of any shape as pictures of one shape: the largest part in the middle that has its proportions, then resized.

One rule for stimuli, targets, truth and reconstructions, so that no two of them are compared in different proportions.
Horikawa & Kamitani 2017 cropped what they showed in the same way.
"""

from __future__ import annotations

import numpy as np
from PIL import Image


def central(picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The largest part in the middle of a picture (H, W, ...) that has the proportions of `shape` (height, width)."""
    high, wide = picture.shape[:2]
    if high * shape[1] > wide * shape[0]:
        kept = max(1, round(wide * shape[0] / shape[1]))
        top = (high - kept) // 2
        return picture[top : top + kept]
    if high * shape[1] < wide * shape[0]:
        kept = max(1, round(high * shape[1] / shape[0]))
        left = (wide - kept) // 2
        return picture[:, left : left + kept]
    return picture


def framed(picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A picture uint8 (H, W, 3) as (*shape, 3): its `central` part, bicubic and antialiased; as it is where it fits already."""
    part = central(picture, shape)
    if part.shape[:2] == shape:
        return part
    return np.asarray(Image.fromarray(part).resize((shape[1], shape[0]), Image.Resampling.BICUBIC))
