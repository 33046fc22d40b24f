"""Shared by all tests: small worlds with a known answer, and the development data where there is any."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cadiff.data.dataset import write_dataset

NUM_VOXELS, SIDE = 40, 16


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def dev_data() -> Path:
    """The folder of real development data; the test is skipped where there is none."""
    folder = os.environ.get("CADIFF_DEV_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real development data: set CADIFF_DEV_DATA to its folder")
    return Path(folder)


@pytest.fixture(scope="session")
def linear_brain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder in which betas are a linear map of the pixels, almost without noise.

    Two classes ("dark", "bright") that differ in their mean; 30 training pictures once, 6 test pictures 3 times.
    """
    rng = np.random.default_rng(5)
    weights = rng.normal(size=(4, NUM_VOXELS))  # pictures are 2 x 2 blocks: four numbers each
    ids = [f"train-{i}" for i in range(30)] + [f"test-{i}" for i in range(6)]
    levels = rng.uniform(0.1, 0.5, size=(len(ids), 4))
    labels = ["dark" if i % 2 else "bright" for i in range(len(ids))]
    levels[[label == "bright" for label in labels]] += 0.4
    images = {}
    for name, row in zip(ids, levels, strict=True):
        grey = np.kron(row.reshape(2, 2), np.ones((SIDE // 2, SIDE // 2)))
        images[name] = np.repeat(np.rint(grey * 255).astype(np.uint8)[..., None], 3, axis=2)
    trials = [(name, "train", 1) for name in ids[:30]]
    trials += [(name, "test", repeat) for repeat in (1, 2, 3) for name in ids[30:]]
    shown = [ids.index(name) for name, _, _ in trials]
    betas = levels[shown] @ weights + 0.01 * rng.normal(size=(len(trials), NUM_VOXELS))
    table = pd.DataFrame(trials, columns=["stimulus_id", "split", "repeat"]).assign(session=1, run=1)
    return write_dataset(
        tmp_path_factory.mktemp("linear") / "dataset",
        name="linear",
        subject="sub-01",
        betas=betas,
        trials=table,
        voxels=pd.DataFrame({"rois": ["V1", "V2"] * (NUM_VOXELS // 2)}),
        stimuli=pd.DataFrame({"stimulus_id": ids, "label": labels}),
        images=images,
    )
