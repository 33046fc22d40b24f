"""A tiny subject with pictures, a tiny phase-1 encoder and a tiny image auto-encoder in a folder."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import tiny_networks
from cadiff.contrast import FmriMae, save_encoder
from cadiff.contrast.encoder_folder import fit_preprocessor
from cadiff.contrast.mae import initialise
from cadiff.data.dataset import BrainDataset, write_dataset
from cadiff.data.preprocess import PreprocessConfig


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def make_subject(folder: Path, name: str, *, num_voxels: int, num_train: int, seed: int) -> Path:
    """Each training stimulus twice, two test stimuli twice; betas are a linear code of the pictures' mean colour."""
    rng = np.random.default_rng(seed)
    stimuli = [f"s{k}" for k in range(num_train + 2)]
    images = {}
    for stimulus in stimuli:
        colour = rng.integers(40, 216, size=3)
        images[stimulus] = np.clip(colour + rng.normal(0, 30, (20, 20, 3)), 0, 255).astype(np.uint8)
    train, test = stimuli[:num_train], stimuli[num_train:]
    ids = train + train[::-1] + test * 2
    colours = np.stack([images[i].mean((0, 1)) for i in ids]) / 60
    betas = colours @ rng.normal(size=(3, num_voxels)) + 0.2 * rng.normal(size=(len(ids), num_voxels))
    splits = ["train"] * (2 * num_train) + ["test"] * 4
    trials = pd.DataFrame({"stimulus_id": ids, "split": splits, "session": 1, "run": 1, "repeat": 1})
    return write_dataset(
        folder,
        name="tiny",
        subject=name,
        betas=betas.astype(np.float32),
        trials=trials,
        voxels=pd.DataFrame({"rois": ["V1"] * num_voxels}),
        stimuli=pd.DataFrame({"stimulus_id": stimuli}),
        images=images,
    )


@pytest.fixture
def subject(tmp_path: Path) -> Path:
    """24 training trials of 12 stimuli, 4 test trials."""
    return make_subject(tmp_path / "subject", "one", num_voxels=30, num_train=12, seed=0)


@pytest.fixture
def other_subject(tmp_path: Path) -> Path:
    """Other pictures under the same names, fewer voxels, 16 training trials."""
    return make_subject(tmp_path / "other", "two", num_voxels=21, num_train=8, seed=1)


@pytest.fixture
def encoder(tmp_path: Path, subject: Path, generator: torch.Generator) -> Path:
    """As phase 1 would leave it, with three decoder blocks."""
    model = FmriMae(tiny_networks.fmri_mae_config(decoder_depth=3))
    initialise(model, generator)
    preprocessor = fit_preprocessor(BrainDataset.open(subject), PreprocessConfig(), patch_size=4)
    return save_encoder(tmp_path / "phase-1", model, preprocessor, {})


@pytest.fixture
def image_mae(tmp_path: Path) -> Path:
    """A half-precision ViT-MAE of 16 pixels."""
    folder = tmp_path / "image_mae"
    with tiny_networks.seeded(0):
        tiny_networks.image_mae().half().save_pretrained(folder)
    (folder / "input.json").write_text(json.dumps({"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}))
    return folder
