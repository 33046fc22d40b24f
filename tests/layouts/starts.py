"""Small weights to start an experiment from, in the layout that `cadiff run --weights` takes, and a preset of their sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel, VQModel
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from cadiff.contrast import FmriEncoder, FmriMae, FmriMaeConfig, save_encoder
from cadiff.data.preprocess import Preprocessor
from cadiff.priors.load import save_prior

SIZES: dict[str, Any] = {
    "patch_size": 8,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
    "decoder_embed_dim": 8,
    "decoder_depth": 2,
    "decoder_num_heads": 2,
}
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
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make_prior(folder / "prior")
        make_image_mae(folder / "image_mae")
        make_encoder(folder / "phase1")
    return folder


def make_prior(folder: Path, *, null_label: bool = True) -> Path:
    vqvae = VQModel(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        num_vq_embeddings=32,
        sample_size=16,
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
    classes = ["dark", "bright", "cat", "dog"]
    about: dict[str, Any] = {"classes": classes, "names": classes}
    return save_prior(
        folder,
        vqvae=vqvae,
        unet=unet,
        scheduler=schedule,
        label_embedding=torch.randn(4 + null_label, 12),
        about={**about, "null_label": 4} if null_label else about,
        dtype=torch.float32,
    )


def make_image_mae(folder: Path) -> Path:
    config = ViTMAEConfig(
        image_size=16,
        patch_size=4,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=32,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    ViTMAEForPreTraining(config).save_pretrained(folder)
    return folder


def make_encoder(folder: Path, *, num_voxels: int = 48, decoder: bool = True, **sizes: int) -> Path:
    """As a phase 1 of other people's would leave it, with statistics of nobody in particular."""
    config = FmriMaeConfig(num_voxels=num_voxels, **{**SIZES, **sizes})
    model = FmriMae(config) if decoder else FmriEncoder(config)
    preprocessor = Preprocessor.fit(np.eye(30), patch_size=8, num_voxels=num_voxels)
    return save_encoder(folder, model, preprocessor, {})
