"""One step of each stage, as it is trained, on fake tensors: what `memory.count_step` counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cadiff.attend.image_mae import image_mae_without_weights
from cadiff.attend.model import ImageCross, phase_2_loss
from cadiff.attend.stage import AttendConfig, cross_config
from cadiff.contrast.cross import FmriCross
from cadiff.contrast.mae import FmriMae, FmriMaeConfig
from cadiff.contrast.stage import ContrastConfig, phase_1_loss
from cadiff.diffuse.conditioner import FmriConditioner
from cadiff.diffuse.reconstruct import ReconstructConfig
from cadiff.diffuse.settings import DiffuseConfig
from cadiff.diffuse.stage import EpsilonLoss
from cadiff.diffuse.trainable import mark_trainable
from cadiff.plan.memory import Step, count_step
from cadiff.priors.load import ImagePrior, decode, prior_without_weights
from cadiff.priors.published import published_sizes


@dataclass(frozen=True)
class Models:
    """What decides the sizes, beside the settings."""

    mae: FmriMaeConfig
    """Of the fMRI auto-encoder, with the length of its input."""
    image_mae: str | Path = "shipped"
    """"shipped", a ViT-MAE folder or a prior folder that holds one, or "published": ViT-MAE base."""
    prior: str | Path = "shipped"
    """"shipped", a prior folder, or "published": the label-to-image model of the paper."""


def contrast_step(config: ContrastConfig, models: Models, batch: int, *, bf16: bool) -> Step:
    """One step of phase 1."""

    def step(model: Any) -> Tensor:
        model.recompute = config.gradient_checkpointing
        betas = torch.randn(batch, models.mae.num_voxels)
        return phase_1_loss(model, betas, torch.Generator(), config)["loss"]

    return count_step(lambda: FmriMae(models.mae), step, bf16=bf16)


def attend_step(config: AttendConfig, models: Models, batch: int, *, bf16: bool) -> Step:
    """One step of phase 2."""

    def build() -> nn.Module:
        images = image_mae_without_weights(models.image_mae, decoder_depth=config.image_decoder_depth)
        cross = cross_config(images.model.config, config)
        depth = min(config.decoder_depth, models.mae.decoder_depth)
        fmri = FmriCross(models.mae.model_copy(update={"decoder_depth": depth}), cross)
        image = ImageCross(images, models.mae.embed_dim, cross)
        image.set_trainable(config.trainable)
        return nn.ModuleDict({"fmri": fmri, "image": image})

    def step(both: Any) -> Tensor:
        image, side = both["image"], both["image"].image_size
        betas = torch.randn(batch, models.mae.num_voxels)
        pixels = torch.randn(batch, 3, side, side)
        kept = config.cache_support and config.trainable == "code"
        width = image.mae.config.hidden_size
        support = torch.randn(batch, 1 + image.num_tokens, width) if kept else None
        return phase_2_loss(
            both["fmri"],
            image,
            betas,
            betas,
            pixels,
            torch.Generator(),
            mask_ratio=config.mask_ratio,
            image_mask_ratio=config.image_mask_ratio,
            gamma_f=config.gamma_f,
            gamma_i=config.gamma_i,
            image_support=support,
        )["loss"]

    return count_step(build, step, bf16=bf16)


def diffuse_step(config: DiffuseConfig, models: Models, batch: int, *, bf16: bool) -> Step:
    """One step of the tuning of the latent diffusion model."""

    def build() -> nn.Module:
        prior = _prior(models)
        if config.gradient_checkpointing:
            prior.unet.enable_gradient_checkpointing()
        conditioner = _conditioner(config, models, prior)
        mark_trainable(
            prior.unet,
            conditioner,
            train_encoder=config.train_encoder,
            train_positions=config.train_positions,
            train_null=config.null == "learned",
            blocks=config.unet_blocks,
        )
        network: Any = nn.ModuleDict({"unet": prior.unet, "conditioner": conditioner})
        network.prior = prior
        return network.train()

    def step(network: Any) -> Tensor:
        loss = EpsilonLoss(config, network.prior, network["conditioner"])
        latents = torch.randn(batch, 1 + config.num_crops, *network.prior.latent_shape)
        betas = torch.randn(batch, models.mae.num_voxels)
        return loss({"betas": betas, "latents": latents}, torch.Generator())["loss"]

    return count_step(build, step, bf16=bf16)


def reconstruct_step(config: ReconstructConfig, models: Models, batch: int, *, bf16: bool) -> Step:
    """One step of the sampler for `batch` pictures, and their decoding."""

    def build() -> nn.Module:
        prior = _prior(models)
        network: Any = nn.ModuleDict({"unet": prior.unet, "vqvae": prior.vqvae})
        network.prior = prior
        return network.requires_grad_(False)

    def step(network: Any) -> None:
        prior: ImagePrior = network.prior
        rows = batch * (2 if config.guidance_scale != 1 else 1)
        with torch.no_grad():
            latents = torch.randn(rows, *prior.latent_shape)
            context = torch.randn(rows, 77, prior.context_dim)
            time = torch.randn(rows, prior.time_dim)
            prior.unet(latents, torch.zeros(rows), encoder_hidden_states=context, class_labels=time)
            decode(prior.vqvae, latents[:batch], prior.scaling_factor)

    return count_step(build, step, bf16=bf16)


STEPS: dict[str, Callable[..., Step]] = {
    "contrast": contrast_step,
    "attend": attend_step,
    "diffuse": diffuse_step,
    "reconstruct": reconstruct_step,
}


def _prior(models: Models) -> ImagePrior:
    return published_sizes() if str(models.prior) == "published" else prior_without_weights(models.prior)


def _conditioner(config: DiffuseConfig, models: Models, prior: ImagePrior) -> FmriConditioner:
    return FmriConditioner(
        encoder_config=models.mae.model_dump(),
        preprocess_config={},
        context_dim=prior.context_dim,
        time_dim=prior.time_dim,
        context_length=config.context_length,
    )
