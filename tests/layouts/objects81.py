"""The pickle of 81 object categories, with made-up names and responses."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from layouts import Sample

NUM_CATEGORIES = 81
VOXELS = {"EVC": 100, "OPA": 100, "PPA": 100, "LOC": 96, "PFS": 100, "OFA": 100, "FFA": 100}


def make_content(rng: np.random.Generator) -> dict[str, Any]:
    """The dict of the file: names lie in cells, as scipy reads those of MATLAB."""
    return {
        "betas": rng.normal(size=(NUM_CATEGORIES, sum(VOXELS.values()))).astype(np.float32),
        "conds": cells([f"object{number}" for number in range(NUM_CATEGORIES)], (NUM_CATEGORIES, 1)),
        "indices": np.repeat(np.arange(1, 8, dtype=np.uint8), list(VOXELS.values()))[None],
        "rois": cells(list(VOXELS), (1, len(VOXELS))),
    }


def cells(words: list[str], shape: tuple[int, int]) -> np.ndarray:
    array = np.empty(len(words), dtype=object)
    for place, word in enumerate(words):
        array[place] = np.array([word])
    return array.reshape(shape)


def make(folder: Path, rng: np.random.Generator) -> Sample:
    folder.mkdir(parents=True)
    source = folder / "python_roi_data.pickle"
    source.write_bytes(pickle.dumps(make_content(rng), protocol=4))
    return Sample("objects81", source, {}, {"train": NUM_CATEGORIES}, sum(VOXELS.values()))
