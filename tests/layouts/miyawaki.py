"""The figure session of Miyawaki et al. 2008 in the form of V1_mean_figure.mat, with made-up pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.io import savemat

from layouts import Sample

NUM_VOXELS, NUM_PICTURES, RUNS, TRIALS_PER_RUN = 797, 10, 8, 10


def make_content(rng: np.random.Generator) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """The arrays of the file, upright pictures uint8 (10, 10, 10), and the picture of each trial, int (80,).

    A run shows five pictures in order and then again in a random one; the first four runs show the first five pictures.
    """
    pictures = np.zeros((NUM_PICTURES, 10, 10), np.uint8)
    for number, picture in enumerate(pictures):
        picture[1 : 3 + number % 5, 2 : 4 + number // 5] = 1  # tall, so that a turned one shows
        picture[0, number] = 1
    shown = []
    for run in range(RUNS):
        first = 5 * (run // (RUNS // 2))
        shown += [*range(first, first + 5), *(first + rng.permutation(5))]
    shown = np.array(shown)
    columns = np.stack([pictures[number].ravel(order="F") for number in shown], axis=1)
    weights = rng.normal(size=(NUM_VOXELS, 100))
    responses = weights @ columns + rng.normal(size=(NUM_VOXELS, len(shown)))
    return {"I2": columns, "R2": responses}, pictures, shown


def make(folder: Path, rng: np.random.Generator) -> Sample:
    folder.mkdir(parents=True)
    content, _, _ = make_content(rng)
    savemat(folder / "V1_mean_figure.mat", content, do_compression=True)
    return Sample(
        "miyawaki", folder / "V1_mean_figure.mat", {"test": [5, 10]}, {"train": 64, "test": 16}, NUM_VOXELS
    )
