"""A run small enough that every test takes a moment: a noise-free subject, a label start, two encoders, pictures."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cadiff.contrast import FmriMae, save_encoder
from cadiff.data.dataset import BrainDataset
from cadiff.data.preprocess import Preprocessor
from cadiff.diffuse.reconstruct import ReconstructConfig, reconstruct
from cadiff.diffuse.stage import DiffuseConfig, diffuse
from cadiff.eyes.eye import Eye
from layouts.starts import make_prior
from tiny_networks import fmri_mae_config, seeded

STAGES = ("contrast", "attend")


class _Look(nn.Module):
    """Numbers of a picture by a fixed random matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(3 * 16 * 16, 24, generator=torch.Generator().manual_seed(3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"pooled": F.adaptive_avg_pool2d(x, 16).flatten(1) @ self.weight}


def _pixels(images: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Eye:
    """Stands for every classifier."""
    eye = Eye("tiny", _Look(), _pixels, ("pooled",))
    monkeypatch.setattr("cadiff.trace.targets.load_classifier", lambda name: eye)
    return eye


@pytest.fixture(scope="session")
def made_run(tmp_path_factory: pytest.TempPathFactory, linear_brain: Path) -> Path:
    """subject/, contrast/encoder, attend/encoder, diffuse/, reconstructions/ as `cadiff run` lays them out."""
    run = tmp_path_factory.mktemp("trace") / "run"
    # other tests look at the same subject, and their looks are no concern of this copy
    subject = Path(
        shutil.copytree(linear_brain, run / "subject", ignore=shutil.ignore_patterns("test_looks*"))
    )
    data = BrainDataset.open(subject)
    preprocessor = Preprocessor.fit(data.betas[data.rows("train")], patch_size=8)
    for seed, stage in enumerate(STAGES):
        with seeded(seed):
            model = FmriMae(fmri_mae_config(num_voxels=40, patch_size=8, depth=1, decoder_depth=1)).eval()
        save_encoder(run / stage / "encoder", model, preprocessor, {"stage": stage})
    with seeded(9):
        prior = make_prior(run.parent / "prior")
    fit = {"epochs": None, "steps": 4, "batch_size": 4, "learning_rate": 1e-2}
    small = {"context_length": 4, "num_crops": 0, "crop_probability": 0, "sparsify_rate": 0}
    config = DiffuseConfig.model_validate({**small, "label_start": True, "fit": fit})
    pipeline = diffuse(config, subject, run / "attend" / "encoder", run / "diffuse", prior=prior)
    drawing = {
        "num_images_per_trial": 2,
        "num_inference_steps": 2,
        "controls": ["prior_only", "label_oracle"],
    }
    drawing = ReconstructConfig.model_validate({**drawing, "importance": False})
    reconstruct(drawing, pipeline, subject, run / "reconstructions")
    return run


@pytest.fixture
def run(made_run: Path, tmp_path: Path) -> Path:
    """A copy: a trace counts its look beside the data."""
    return Path(shutil.copytree(made_run, tmp_path / "run"))
