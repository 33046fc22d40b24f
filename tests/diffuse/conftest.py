"""A prior, an encoder, a dataset and a pipeline small enough that every test takes a moment."""

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel, VQModel

from cadiff.contrast import FmriMaeConfig, save_encoder
from cadiff.contrast.mae import FmriMae
from cadiff.data.dataset import BrainDataset, write_dataset
from cadiff.data.preprocess import Preprocessor
from cadiff.diffuse.conditioner import FmriConditioner
from cadiff.diffuse.pipeline import FmriToImagePipeline
from cadiff.diffuse.sampling import make_scheduler
from cadiff.priors.load import load_prior, save_prior

CLASSES = ["cat", "dog", "car", "cup"]
NUM_VOXELS = 30


def tiny_networks():
    """A VQ model (16 px -> 3 x 8 x 8) and a denoiser with cross-attention on both ways."""
    with torch.random.fork_rng():
        torch.manual_seed(0)  # diffusers draws its initial weights from the global generator
        vqvae = VQModel(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            num_vq_embeddings=32,
            sample_size=16,
            scaling_factor=0.5,
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=3,
            out_channels=3,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=2,
            cross_attention_dim=12,
            norm_num_groups=4,
        )
    schedule = DDIMScheduler(
        beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False
    )
    return vqvae, unet, schedule


@pytest.fixture(scope="session")
def prior_folder(tmp_path_factory):
    vqvae, unet, schedule = tiny_networks()
    table = 4 * torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    about = {"classes": CLASSES, "names": CLASSES, "imagenet_index": [281, 207, 817, 968], "null_label": 4}
    return save_prior(
        tmp_path_factory.mktemp("prior") / "tiny",
        vqvae=vqvae,
        unet=unet,
        scheduler=schedule,
        label_embedding=table,
        about=about,
        dtype=torch.float32,
    )


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
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return FmriMae(
            FmriMaeConfig(
                num_voxels=32,
                patch_size=8,
                embed_dim=16,
                depth=1,
                num_heads=2,
                decoder_embed_dim=8,
                decoder_depth=1,
                decoder_num_heads=2,
            )
        ).eval()


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
