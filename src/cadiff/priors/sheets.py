"""Many small pictures as one PNG."""

from pathlib import Path

import numpy as np
from PIL import Image

from cadiff.artifacts import atomic_path


def save_sheet(path: Path, images: np.ndarray, *, columns: int, gap: int = 2) -> None:
    """uint8 (N, S, S, 3) as one PNG, row by row."""
    rows, size = -(-len(images) // columns), images.shape[1]
    sheet = np.full((rows * (size + gap) - gap, columns * (size + gap) - gap, 3), 255, np.uint8)
    for place, image in enumerate(images):
        top, left = (place // columns) * (size + gap), (place % columns) * (size + gap)
        sheet[top : top + size, left : left + size] = image
    with atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="png")
