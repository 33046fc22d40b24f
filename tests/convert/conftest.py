"""Small checkpoints in every published layout, and a subject they were tuned on."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cadiff.data.dataset import write_dataset
from layouts import compvis, weights

TOKENS, WIDTH, PATCH = 4, 32, 4
ENCODER = {"tokens": TOKENS, "width": WIDTH, "depth": 2, "patch": PATCH}
DECODER = {"tokens": TOKENS, "width": WIDTH, "decoder": 16, "depth": 3, "patch": PATCH}
SETTINGS = {"num_heads": 4, "decoder_num_heads": 2, "mlp_ratio": 1.0, "patch_size": PATCH, "seed": 2022}
SIDE = 16
"""Of the latents that the small models are for."""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def phase_1() -> dict[str, torch.Tensor]:
    return weights.fill({**weights.fmri_encoder(**ENCODER), **weights.fmri_decoder(**DECODER)})


@pytest.fixture
def phase_2(phase_1) -> dict[str, torch.Tensor]:
    return {**phase_1, **weights.fill(weights.cross_part(WIDTH, cross=24, depth=2, hidden=40), seed=1)}


@pytest.fixture
def label_ldm() -> dict[str, torch.Tensor]:
    shapes = compvis.label_ldm(compvis.SMALL, compvis.SMALL_VQ)
    return {**compvis.noise_buffers(), **weights.fill(shapes)}


@pytest.fixture
def brain_ldm() -> dict[str, torch.Tensor]:
    shapes = compvis.brain_ldm(compvis.SMALL, compvis.SMALL_VQ, ENCODER, length=6)
    return {**compvis.noise_buffers(), **weights.fill(shapes)}


@pytest.fixture
def config_yaml(tmp_path: Path) -> Path:
    """As it lies beside model.ckpt in pretrains/ldm/label2img, for small latents."""
    path = tmp_path / "config.yaml"
    path.write_text(f"model: {{params: {{unet_config: {{params: {{image_size: {SIDE}, num_heads: 1}}}}}}}}\n")
    return path


@pytest.fixture
def subject(tmp_path: Path) -> Path:
    """14 voxels, which whole patches of 4 fill up to 16: 12 training trials, 3 test trials of other pictures."""
    rng = np.random.default_rng(0)
    ids = [f"s{i}" for i in range(15)]
    trials = pd.DataFrame(
        {"stimulus_id": ids, "split": ["train"] * 12 + ["test"] * 3, "session": 1, "run": 1, "repeat": 1}
    )
    return write_dataset(
        tmp_path / "subject",
        name="tiny",
        subject="sub-01",
        betas=(3 + 2 * rng.normal(size=(15, 14))).astype(np.float32),
        trials=trials,
        voxels=pd.DataFrame({"rois": ["V1"] * 14}),
        stimuli=pd.DataFrame({"stimulus_id": ids}),
        images={name: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for name in ids},
    )
