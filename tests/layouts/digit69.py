"""The digit69 .mat file (van Gerven et al. 2010), with made-up digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.io import savemat

from layouts import Sample


def make_content(
    rng: np.random.Generator, *, train: int = 6, test: int = 2, voxels: int = 12
) -> dict[str, np.ndarray]:
    """The arrays of the file; trials alternate between six (1) and nine (2)."""
    content: dict[str, np.ndarray] = {}
    for suffix, count in (("Trn", train), ("Test", test)):
        content[f"fmri{suffix}"] = rng.normal(size=(count, voxels))
        content[f"stim{suffix}"] = rng.integers(0, 256, (count, 784)).astype(np.uint8)
        content[f"label{suffix}"] = (1 + np.arange(count) % 2).astype(np.uint8)[:, None]
    return content


def make(folder: Path, rng: np.random.Generator) -> Sample:
    folder.mkdir(parents=True)
    savemat(folder / "digit69_28x28.mat", make_content(rng), do_compression=True)
    return Sample(
        "digit69", folder / "digit69_28x28.mat", {"canvas": 32}, {"train": 6, "test": 2}, num_voxels=12
    )
