"""The paper's own sizes through the real code: one step of every stage, ten steps of the sampler at 256 x 256 pixels.

About 7 GiB of memory and four minutes on two CPU cores. Weights are random: what counts is that everything fits together.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from cadiff.data.simulate import SimulateConfig, simulate
from cadiff.experiments import run_experiment
from cadiff.priors.load import save_prior
from cadiff.priors.published import published_sizes

SHORT = {"epochs": "null", "warmup_epochs": "null", "steps": 1, "batch_size": 2}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """As `cadiff weights import` leaves the published label-to-image model, beside a ViT-MAE base; half precision."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = published_sizes()
        ViTMAEForPreTraining(ViTMAEConfig()).half().save_pretrained(tmp_path / "weights" / "image_mae")
    classes = [str(number) for number in range(1000)]
    about = {
        "classes": classes,
        "names": classes,
        "imagenet_index": list(range(1000)),
        "null_label": 1000,
    }
    save_prior(
        tmp_path / "weights" / "prior",
        vqvae=networks.vqvae,
        unet=networks.unet,
        scheduler=networks.scheduler,
        label_embedding=torch.randn(1001, 512, generator=torch.Generator().manual_seed(0)),
        about=about,
    )
    return tmp_path / "weights"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*its last 190 places repeat them")  # the length is GOD subject 3's
def test_every_stage_at_full_size_and_ten_steps_at_256_pixels(weights, tmp_path):
    subject = SimulateConfig(num_train_classes=4, images_per_class=1, num_test_images=2, test_repeats=1)
    simulate(subject, tmp_path / "subject")
    overrides = [
        f"{stage}.fit.{key}={value}" for stage in ("contrast", "attend") for key, value in SHORT.items()
    ]
    overrides += ["diffuse.fit.epochs=null", "diffuse.fit.steps=1", "diffuse.fit.batch_size=2"]
    overrides += ["diffuse.num_crops=0", "diffuse.gradient_checkpointing=true"]
    overrides += ["contrast.preprocess.rois=null", "reconstruct.num_images_per_trial=1"]
    overrides += ["reconstruct.num_inference_steps=10", "reconstruct.controls=[]", "evaluate.n_way=50"]
    out = tmp_path / "run"
    page = run_experiment(
        "paper/god-sub-03", out, dataset=tmp_path / "subject", weights=weights, overrides=overrides
    )
    assert page.stat().st_size > 10_000
    pictures = sorted((out / "reconstructions").rglob("*.png"))
    assert len(pictures) == 2
    for picture in pictures:
        with Image.open(picture) as opened:
            assert opened.size == (256, 256)
    assert len({picture.read_bytes() for picture in pictures}) == 2
    encoder = json.loads((out / "attend" / "encoder" / "config.json").read_text())["config"]
    assert (encoder["mae"]["num_voxels"], encoder["mae"]["depth"], encoder["cross"]["depth"]) == (4656, 24, 3)
