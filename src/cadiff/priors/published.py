"""Sizes of the published label-to-image model (CompVis "cin256-v2", Rombach et al. 2022) in diffusers' terms.

Sun et al. 2023 and Chen et al. 2023 (MinD-Vis) start from it: a denoiser of 400.9 M parameters on latents 3 x 64 x 64,
conditioned on one of 1,000 ImageNet classes or none, and a VQ auto-encoder of 55.3 M that makes them from 256 x 256 pixels.
`cadiff weights import` reads the sizes from the file; these serve where there is no file, to plan and to test.
"""

from __future__ import annotations

from typing import Any

from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from cadiff.priors.load import ImagePrior

UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 3),
    "up_block_types": (*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"),
    "block_out_channels": (192, 384, 576, 960),
    "layers_per_block": 2,
    "cross_attention_dim": 512,
    "attention_head_dim": 1,  # which means one head
    "class_embed_type": "identity",
}
VQVAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (128, 256, 512),
    "layers_per_block": 2,
    "latent_channels": 3,
    "num_vq_embeddings": 8192,
    "vq_embed_dim": 3,
    "norm_num_groups": 32,
    "scaling_factor": 1.0,
    "sample_size": 256,
}
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
}


def published_sizes() -> ImagePrior:
    """The published networks in their sizes, weights as they begin, without the label table."""
    return ImagePrior(
        vqvae=VQModel(**VQVAE),
        unet=UNet2DConditionModel(**UNET),
        scheduler=DDIMScheduler(**SCHEDULE),
        scaling_factor=1.0,
    )
