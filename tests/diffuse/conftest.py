"""A prior, an encoder, a dataset and a pipeline small enough that every test takes a moment."""

import numpy as np
import pandas as pd
import pytest
import torch

from cadiff.contrast import save_encoder
from cadiff.contrast.mae import FmriMae
from cadiff.data.dataset import BrainDataset, write_dataset
from cadiff.data.preprocess import Preprocessor
from cadiff.diffuse.conditioner import FmriConditioner
from cadiff.diffuse.pipeline import FmriToImagePipeline
from cadiff.diffuse.sampling import make_scheduler
from cadiff.priors.load import load_prior
from tiny_networks import fmri_mae_config, seeded, write_prior

CLASSES = ["cat", "dog", "car", "cup"]
NUM_VOXELS = 30


@pytest.fixture(scope="session")
def prior_folder(tmp_path_factory):
    table = 4 * torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    about = {"classes": CLASSES, "names": CLASSES, "imagenet_index": [281, 207, 817, 968], "null_label": 4}
    with seeded(0):
        return write_prior(tmp_path_factory.mktemp("prior") / "tiny", table, about, scaling_factor=0.5)


@pytest.fixture
def prior(prior_folder):
    return load_prior(prior_folder)


@pytest.fixture(scope="session")
def dataset_folder(tmp_path_factory):
    """Eight training stimuli shown twice, four test stimuli shown twice; betas carry the class."""
    rng = np.random.default_rng(0)
    names = [f"train{i}" for i in range(8)] + [f"test{i}" for i in range(4)]
    labels = [CLASSES[i % 4] for i in range(12)]
    code = rng.normal(size=(4, NUM_VOXELS))
    shown = np.repeat(np.arange(12), 2)
    betas = code[shown % 4] + 0.3 * rng.normal(size=(24, NUM_VOXELS))
    trials = pd.DataFrame(
        {
            "stimulus_id": [names[i] for i in shown],
            "split": ["train" if i < 8 else "test" for i in shown],
            "session": 1,
            "run": 1,
            "repeat": [1, 2] * 12,
        }
    )
    return write_dataset(
        tmp_path_factory.mktemp("data") / "tiny",
        name="tiny",
        subject="sub-01",
        betas=betas,
        trials=trials,
        voxels=pd.DataFrame({"rois": ["V1"] * NUM_VOXELS}),
        stimuli=pd.DataFrame({"stimulus_id": names, "label": labels}),
        images={name: rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for name in names},
    )


@pytest.fixture(scope="session")
def dataset(dataset_folder):
    return BrainDataset.open(dataset_folder)


@pytest.fixture(scope="session")
def preprocessor(dataset):
    return Preprocessor.fit(dataset.betas[dataset.rows("train")], patch_size=8)


def make_encoder():
    with seeded(2):
        return FmriMae(fmri_mae_config(patch_size=8, depth=1, decoder_depth=1)).eval()


@pytest.fixture
def encoder():
    return make_encoder()


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory, preprocessor):
    return save_encoder(tmp_path_factory.mktemp("encoder") / "encoder", make_encoder(), preprocessor, {})


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def conditioner(encoder, preprocessor, prior, rng):
    return FmriConditioner.build(encoder, preprocessor, prior, context_length=6, generator=rng)


@pytest.fixture
def pipeline(prior, conditioner):
    pipe = FmriToImagePipeline(
        prior.vqvae, prior.unet, make_scheduler("pndm", prior.scheduler.config), conditioner
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
