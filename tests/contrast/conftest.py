"""A tiny subject, and sizes of an auto-encoder that trains in seconds."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cadiff.contrast import FmriMaeSize
from cadiff.data.dataset import write_dataset
from tiny_networks import FMRI_MAE


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def tiny() -> FmriMaeSize:
    return FmriMaeSize(**FMRI_MAE)


@pytest.fixture
def make_subject(tmp_path: Path) -> Callable[..., Path]:
    """A dataset folder: structured betas (a few latent factors), 24 train, 8 unlabelled and 4 test trials."""

    def make(name: str = "subject", num_voxels: int = 30, seed: int = 0) -> Path:
        rng = np.random.default_rng(seed)
        splits = ["train"] * 24 + ["unlabelled"] * 8 + ["test"] * 4
        factors = rng.normal(size=(len(splits), 3)) @ rng.normal(size=(3, num_voxels))
        betas = (5 + factors + 0.1 * rng.normal(size=factors.shape)).astype(np.float32)
        ids = [f"{split}{k}" for k, split in enumerate(splits)]
        trials = pd.DataFrame({"stimulus_id": ids, "split": splits, "session": 1, "run": 1, "repeat": 1})
        return write_dataset(
            tmp_path / name,
            name="tiny",
            subject=name,
            betas=betas,
            trials=trials,
            voxels=pd.DataFrame({"rois": ["V1"] * num_voxels}),
            stimuli=pd.DataFrame({"stimulus_id": ids, "label": ids}),
            images={i: rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) for i in ids},
        )

    return make
