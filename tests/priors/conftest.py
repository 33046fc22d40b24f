"""Small pictures with something to learn: a coloured square or disc on a dark ground."""

import numpy as np
import pytest


def coloured_shapes(count: int, size: int = 16, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 (count, size, size, 3) and labels (count,): 0 a red square, 1 a green disc, anywhere."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = np.full((count, size, size, 3), 20, np.uint8)
    y, x = np.mgrid[:size, :size]
    for image, label in zip(images, labels, strict=True):
        cy, cx = rng.uniform(size * 0.3, size * 0.7, 2)
        radius = rng.uniform(size * 0.15, size * 0.3)
        square, disc = np.maximum(abs(y - cy), abs(x - cx)) < radius, np.hypot(y - cy, x - cx) < radius
        image[disc if label else square] = (40, 200, 60) if label else (220, 50, 40)
    return images, labels


@pytest.fixture(scope="session")
def shapes() -> tuple[np.ndarray, np.ndarray]:
    return coloured_shapes(48)


@pytest.fixture(scope="session")
def shapes_npz(tmp_path_factory, shapes):
    path = tmp_path_factory.mktemp("shapes") / "shapes.npz"
    np.savez(path, images=shapes[0], labels=shapes[1])
    return path
