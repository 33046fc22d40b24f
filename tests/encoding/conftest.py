"""Worlds in which the code of the voxels is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cadiff.data.dataset import BrainDataset, write_dataset

SIDE = 4


@pytest.fixture
def make_world(tmp_path: Path) -> Callable[..., BrainDataset]:
    """make(noise=..., signal=..., repeats=...) -> dataset; betas = signal * pixels @ weights + noise * (normal)."""

    def make(
        *,
        stimuli: int = 80,
        voxels: int = 60,
        signal: float = 1.0,
        noise: float = 1.0,
        repeats: int = 1,
        unseen: float = 0.0,
        num_test: int = 20,
        seed: int = 0,
    ) -> BrainDataset:
        rng = np.random.default_rng(seed)
        ids = [f"train-{i}" for i in range(stimuli)] + [f"test-{i}" for i in range(num_test)]
        images = rng.integers(1, 255, (len(ids), SIDE, SIDE, 3)).astype(np.uint8)
        flat = images.reshape(len(ids), -1) / 255.0 - 0.5
        free = signal * flat @ rng.normal(size=(flat.shape[1], voxels))
        free += unseen * rng.normal(size=free.shape)  # depends on the stimulus, not on its pixels
        rows = [(i, repeat) for i in range(len(ids)) for repeat in range(1, repeats + 1)]
        shown = np.array([i for i, _ in rows])
        trials = pd.DataFrame(
            {
                "stimulus_id": [ids[i] for i in shown],
                "split": np.where(shown < stimuli, "train", "test"),
                "session": 1,
                "run": 1,
                "repeat": [repeat for _, repeat in rows],
            }
        )
        folder = tmp_path / f"world-{len(list(tmp_path.iterdir()))}"
        write_dataset(
            folder,
            name="world",
            subject="sub-01",
            betas=free[shown] + noise * rng.normal(size=(len(rows), voxels)),
            trials=trials,
            voxels=pd.DataFrame({"rois": ["V1"] * voxels}),
            stimuli=pd.DataFrame({"stimulus_id": ids}),
            images=dict(zip(ids, images, strict=True)),
        )
        return BrainDataset.open(folder)

    return make
