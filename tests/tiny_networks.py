"""Networks so small that every test takes a moment, one maker a kind; keywords change single sizes.

Their weights come from PyTorch's global generator, as diffusers and transformers draw them: make them inside `seeded(...)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel, VQModel
from torch import Tensor
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from cadiff.contrast import FmriMaeConfig
from cadiff.priors.adapted import save_adapted
from cadiff.priors.image_context import ImageContext
from cadiff.priors.load import load_prior, save_prior

FMRI_MAE: dict[str, int] = {
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "decoder_embed_dim": 8,
    "decoder_depth": 2,
    "decoder_num_heads": 2,
}
"""Sizes of an fMRI auto-encoder but for the number of voxels."""
AUTOENCODER: dict[str, Any] = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "sample_size": 16,
}
"""Sizes that a VQ model and a KL auto-encoder share: 16 px -> 3 x 8 x 8."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global generator of PyTorch begins at `seed` inside, and is outside as if nothing had been drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def fmri_mae_config(**sizes: int) -> FmriMaeConfig:
    return FmriMaeConfig(**{"num_voxels": 32, **FMRI_MAE, **sizes})


def vq_model(**changes: Any) -> VQModel:
    return VQModel(**{**AUTOENCODER, "num_vq_embeddings": 32, **changes})


def unet(**changes: Any) -> UNet2DConditionModel:
    """A denoiser of 3 x 8 x 8 latents, with cross-attention on both ways."""
    sizes: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 2,
        "cross_attention_dim": 12,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**sizes, **changes})


def schedule() -> DDIMScheduler:
    """Noise as in the published latent diffusion models."""
    return DDIMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False)


def write_prior(folder: Path, table: Tensor, about: dict[str, Any], **vq: Any) -> Path:
    """A prior folder for 16 px with the label embeddings `table` (classes, 12)."""
    return save_prior(
        folder,
        vqvae=vq_model(**vq),
        unet=unet(),
        scheduler=schedule(),
        label_embedding=table,
        about=about,
        dtype=torch.float32,
    )


def image_context(**changes: Any) -> ImageContext:
    """Of the tiny prior, with 5 coordinates whose axes are drawn, and 6 tokens that differ."""
    sizes = {
        "num_features": 7,
        "num_latents": 192,
        "context_dim": 12,
        "time_dim": 32,
        "sizes": (3, 2),
        "num_tokens": 6,
        "width": 9,
    }
    context = ImageContext(**{**sizes, **changes})
    for tensor in (context.feature_axes, context.latent_axes, context.tokens.weight, context.time.weight):
        tensor.data.normal_(std=0.1)
    return context.eval()


def write_adapted(folder: Path, base: Path) -> Path:
    """An adapted prior: `image_context()`, and one weight of the U-Net twice as large."""
    prior = load_prior(base)
    name = "up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    about = {"base": str(base), "base_digest": prior.digest}
    changes = {name: 2 * prior.unet.get_parameter(name)}
    return save_adapted(folder, image_context(), changes, about, dtype=torch.float32)


def image_mae(**changes: Any) -> ViTMAEForPreTraining:
    """A masked auto-encoder of 16 px in 16 patches."""
    sizes: dict[str, Any] = {
        "image_size": 16,
        "patch_size": 4,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 32,
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 3,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 16,
    }
    model = ViTMAEForPreTraining(ViTMAEConfig(**{**sizes, **changes}))
    for positions in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        positions.data.normal_()  # transformers 5 leaves zeros, with which no test would see a wrong order
    return model
