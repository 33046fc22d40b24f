"""One step of each stage as it is trained: the network, a batch of random data, and the loss.

`stages.py` runs them on tensors without numbers, to count; `cadiff.benchmark` runs them on the machine there is, to time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cadiff.attend.image_mae import image_mae_without_weights
from cadiff.attend.model import ImageCross
from cadiff.attend.stage import AttendConfig, attend_loss, cross_config
from cadiff.contrast.cross import FmriCross
from cadiff.contrast.mae import FmriMae, FmriMaeConfig
from cadiff.contrast.stage import ContrastConfig, phase_1_loss
from cadiff.diffuse.attention import write_out_wide_heads
from cadiff.diffuse.conditioner import FmriConditioner
from cadiff.diffuse.recompute import recompute_blocks
from cadiff.diffuse.settings import DiffuseConfig
from cadiff.diffuse.stage import EpsilonLoss
from cadiff.diffuse.trainable import mark_trainable
from cadiff.priors.load import ImagePrior, prior_without_weights
from cadiff.priors.published import published_sizes

Batch = Any
Losses = Mapping[str, Tensor]


@dataclass(frozen=True)
class Models:
    """What decides the sizes, beside the settings."""

    mae: FmriMaeConfig
    """Of the fMRI auto-encoder, with the length of its input."""
    image_mae: str | Path = "shipped"
    """"shipped", a ViT-MAE folder or a prior folder that holds one, or "published": ViT-MAE base."""
    prior: str | Path = "shipped"
    """"shipped", a prior folder, or "published": the label-to-image model of the paper."""
    context_length: int = 77
    """Context tokens of the U-Net."""


@dataclass(frozen=True)
class Workload:
    """What `cadiff.training.fit` is given in a stage, with random weights and random data."""

    modules: Mapping[str, nn.Module]
    """What is trained, by name, the trainable parameters marked."""
    batch: Callable[[int], Batch]
    """Size -> a batch on the CPU."""
    loss: Callable[[Batch, torch.Generator], Losses]
    """The stage's own loss."""


def contrast_workload(config: ContrastConfig, models: Models) -> Workload:
    """Phase 1."""
    model = FmriMae(models.mae)
    model.recompute = config.gradient_checkpointing

    def loss(betas: Tensor, generator: torch.Generator) -> Losses:
        return phase_1_loss(model, betas, generator, config)

    return Workload({"fmri": model}, lambda size: torch.randn(size, models.mae.num_voxels), loss)


def attend_workload(config: AttendConfig, models: Models) -> Workload:
    """Phase 2."""
    images = image_mae_without_weights(models.image_mae, decoder_depth=config.image_decoder_depth)
    cross = cross_config(images.model.config, config)
    depth = min(config.decoder_depth, models.mae.decoder_depth)
    fmri = FmriCross(models.mae.model_copy(update={"decoder_depth": depth}), cross)
    image = ImageCross(images, models.mae.embed_dim, cross)
    image.set_trainable(config.trainable)
    side, width = image.image_size, images.model.config.hidden_size

    def batch(size: int) -> dict[str, Tensor]:
        found = {
            "betas": torch.randn(size, models.mae.num_voxels),
            "images": torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8),
        }
        if config.cache_support and config.trainable == "code":
            found["support"] = torch.randn(size, 1 + image.num_tokens, width)
        return found

    return Workload({"fmri": fmri, "image": image}, batch, attend_loss(config, fmri, image))


def diffuse_workload(config: DiffuseConfig, models: Models) -> Workload:
    """The tuning of the latent diffusion model."""
    prior = build_prior(models)
    unet: Any = prior.unet
    write_out_wide_heads(unet)
    if config.gradient_checkpointing:
        recompute_blocks(unet)
    conditioner = build_conditioner(models, prior, config.context_length)
    mark_trainable(
        unet,
        conditioner,
        train_encoder=config.train_encoder,
        train_positions=config.train_positions,
        train_null=config.null == "learned",
        blocks=config.unet_blocks,
    )
    views = 1 + (config.num_crops if config.crop_probability > 0 else 0)

    def batch(size: int) -> dict[str, Tensor]:
        latents = torch.randn(size, views, *prior.latent_shape)
        return {"betas": torch.randn(size, models.mae.num_voxels), "latents": latents}

    both = nn.ModuleDict({"conditioner": conditioner, "unet": unet})
    return Workload({"model": both}, batch, EpsilonLoss(config, prior, conditioner))


WORKLOADS: dict[str, Callable[[Any, Models], Workload]] = {
    "contrast": contrast_workload,
    "attend": attend_workload,
    "diffuse": diffuse_workload,
}
"""The stages that train."""


def build_prior(models: Models) -> ImagePrior:
    """The image prior in its sizes, weights as they begin."""
    return published_sizes() if str(models.prior) == "published" else prior_without_weights(models.prior)


def build_conditioner(models: Models, prior: ImagePrior, context_length: int) -> FmriConditioner:
    """A conditioner of these sizes, weights as they begin."""
    return FmriConditioner(
        encoder_config=models.mae.model_dump(),
        preprocess_config={},
        context_dim=prior.context_dim,
        time_dim=prior.time_dim,
        context_length=context_length,
    )
