"""Small weights to start an experiment from, in the layout that `cadiff run --weights` takes, and a preset of their sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from cadiff.contrast import FmriEncoder, FmriMae, save_encoder
from cadiff.data.preprocess import Preprocessor
from tiny_networks import FMRI_MAE, fmri_mae_config, image_mae, seeded, write_prior

SIZES = {**FMRI_MAE, "patch_size": 8, "depth": 1}
FIT = "fit: {epochs: null, warmup_epochs: null, steps: 2, batch_size: 4, checkpoint_every: 1}"
PRESET = f"""
title: every stage of a small subject, from weights
contrast: {{num_voxels: 48, mae: {SIZES}, {FIT}}}
attend: {{cross_depth: 1, {FIT}}}
diffuse: {{context_length: 4, num_crops: 0, crop_probability: 0, {FIT}}}
reconstruct: {{num_images_per_trial: 1, num_inference_steps: 2, importance: false}}
evaluate: {{judge: null, num_bootstrap: 100, train_pictures: 5}}
"""


def make_start(folder: Path) -> Path:
    """prior/ (16 px, four classes), image_mae/ (16 px) and phase1/ (48 voxels), with random weights."""
    with seeded(0):
        make_prior(folder / "prior")
        make_image_mae(folder / "image_mae")
        make_encoder(folder / "phase1")
    return folder


def make_prior(folder: Path, *, null_label: bool = True) -> Path:
    classes = ["dark", "bright", "cat", "dog"]
    about: dict[str, Any] = {"classes": classes, "names": classes}
    about |= {"null_label": 4} if null_label else {}
    return write_prior(folder, torch.randn(4 + null_label, 12), about)


def make_image_mae(folder: Path) -> Path:
    image_mae(num_hidden_layers=1, decoder_num_hidden_layers=2).save_pretrained(folder)
    return folder


def make_encoder(folder: Path, *, num_voxels: int = 48, decoder: bool = True, **sizes: int) -> Path:
    """As a phase 1 of other people's would leave it, with statistics of nobody in particular."""
    config = fmri_mae_config(num_voxels=num_voxels, **{**SIZES, **sizes})
    model = FmriMae(config) if decoder else FmriEncoder(config)
    preprocessor = Preprocessor.fit(np.eye(30), patch_size=8, num_voxels=num_voxels)
    return save_encoder(folder, model, preprocessor, {})
