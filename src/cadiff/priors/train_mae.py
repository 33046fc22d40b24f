"""Masked auto-encoder of an image prior: what phase 2 (attend) guides the fMRI encoder with.

He et al. 2022: three quarters of the patches are hidden, a small decoder predicts them, each patch normalised by its own mean
and deviation (`norm_pix_loss`). The model is transformers' ViTMAEForPreTraining; `input.json` beside it says how pictures are
brought to its input: RGB in 0..1, minus mean, divided by std.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from cadiff.artifacts import write_json
from cadiff.config import Config
from cadiff.processes import on_main
from cadiff.runs import RunFolder
from cadiff.sharing import own, to_device, whole
from cadiff.training import FitConfig, epoch_batches, fit


class ImageMaeConfig(Config):
    """The image MAE and how it is trained; the defaults made the shipped prior's size."""

    patch_size: int = Field(default=8, ge=1)
    """Pixels of a patch's side; must divide the image size."""
    embed_dim: int = Field(default=256, ge=1)
    """Width of the encoder."""
    depth: int = Field(default=8, ge=1)
    """Encoder layers."""
    num_heads: int = Field(default=8, ge=1)
    """Encoder heads; must divide `embed_dim`."""
    decoder_embed_dim: int = Field(default=192, ge=1)
    """Width of the decoder."""
    decoder_depth: int = Field(default=6, ge=1)
    """Decoder layers."""
    decoder_num_heads: int = Field(default=6, ge=1)
    """Decoder heads; must divide `decoder_embed_dim`."""
    mlp_ratio: float = Field(default=4.0, gt=0)
    """Hidden width of the layers' MLPs, in widths."""
    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    """Share of patches that are hidden."""
    min_crop_area: float = Field(default=0.35, gt=0, le=1)
    """Random crops cover this share of a picture up to all of it; 1 for whole pictures."""
    horizontal_flip: bool = True
    """Train on mirrored pictures too; not for digits or letters."""
    pixel_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of the RGB channels in 0..1 (ImageNet's)."""
    pixel_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Deviation of the RGB channels in 0..1 (ImageNet's)."""
    fit: FitConfig = FitConfig(
        steps=2000, batch_size=512, learning_rate=1e-3, warmup_steps=200, ema_decay=0.999, clip_norm=3.0
    )
    """Optimiser and schedule."""

    @model_validator(mode="after")
    def _check(self) -> "ImageMaeConfig":
        for width, heads in (("embed_dim", "num_heads"), ("decoder_embed_dim", "decoder_num_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(
                    f"{width} {getattr(self, width)} is not a multiple of {heads} {getattr(self, heads)}"
                )
        return self


def build_image_mae(config: ImageMaeConfig, image_size: int) -> ViTMAEForPreTraining:
    """The untrained transformers model, its fixed position tables filled in."""
    model = ViTMAEForPreTraining(
        ViTMAEConfig(
            image_size=image_size,
            patch_size=config.patch_size,
            num_channels=3,
            hidden_size=config.embed_dim,
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            intermediate_size=round(config.mlp_ratio * config.embed_dim),
            decoder_hidden_size=config.decoder_embed_dim,
            decoder_num_hidden_layers=config.decoder_depth,
            decoder_num_attention_heads=config.decoder_num_heads,
            decoder_intermediate_size=round(config.mlp_ratio * config.decoder_embed_dim),
            mask_ratio=config.mask_ratio,
            norm_pix_loss=True,
        )
    )
    # transformers 5 leaves both tables at zero in a model that is made from a config: every hidden patch would then get the
    # same prediction, and no error would say so.
    side = image_size // config.patch_size
    for table in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        table.data[0, 1:] = sine_positions(side, table.shape[2])
        assert not table.requires_grad
    return model


def sine_positions(side: int, dim: int) -> Tensor:
    """Fixed sine and cosine table (side * side, dim) of a square grid, row by row: columns in the first half, rows in the second.

    He et al. 2022's code (`get_2d_sincos_pos_embed`); `dim` is a multiple of 4.
    """
    frequencies = 1.0 / 10000 ** (torch.arange(dim // 4) / (dim // 4))
    angles = torch.arange(side)[:, None] * frequencies  # (side, dim / 4)
    one = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, dim / 2)
    columns, rows = one.repeat(side, 1), one.repeat_interleave(side, dim=0)
    return torch.cat([columns, rows], dim=1)


def train_image_mae(
    config: ImageMaeConfig, images: np.ndarray, heldout: np.ndarray, *, run: RunFolder
) -> dict[str, Any]:
    """Trains the MAE on uint8 (N, S, S, 3), writes `run.path/"image_mae"` and returns what was measured."""
    model = build_image_mae(config, images.shape[1])
    order = epoch_batches(len(images), config.fit.batch_size, config.fit.seed)

    def batches(index: int) -> Tensor:
        return torch.from_numpy(images[np.sort(order(index))])

    result = fit(
        image_mae_loss(config, model), {"mae": model}, batches, config.fit, run=run, description="image MAE"
    )
    facts = {
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "heldout_loss": round(_heldout_loss(config, model, heldout), 4),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    on_main(lambda: model.cpu().half().save_pretrained(run.path / "image_mae"))
    about = {
        "mean": list(config.pixel_mean),
        "std": list(config.pixel_std),
        "input": "RGB in 0..1, normalised",
    }
    on_main(lambda: write_json(run.path / "image_mae" / "input.json", about))
    return facts


def image_mae_loss(config: ImageMaeConfig, model: ViTMAEForPreTraining) -> Callable[..., dict[str, Tensor]]:
    """loss_fn for `cadiff.training.fit`; a batch is uint8 (B, S, S, 3)."""

    def loss(batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        images = normalise(batch, config)
        if config.min_crop_area < 1 or config.horizontal_flip:
            images = random_crop(
                images, config.min_crop_area, flip=config.horizontal_flip, generator=generator
            )
        return {"loss": _masked_loss(model, images, generator)}

    return loss


def normalise(images: Tensor, config: ImageMaeConfig) -> Tensor:
    """uint8 (B, S, S, 3) -> float32 (B, 3, S, S), zero mean and unit deviation a channel over photos."""
    mean, std = (to_device(torch.tensor(x), images.device) for x in (config.pixel_mean, config.pixel_std))
    return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def random_crop(images: Tensor, min_area: float, *, flip: bool, generator: torch.Generator) -> Tensor:
    """A crop of each picture (B, 3, S, S), brought back to S: area `min_area`..1, sides 3:4..4:3, half of them mirrored."""
    count = len(images)

    def uniform() -> Tensor:
        return own(torch.rand(whole(count), generator=generator))

    area = min_area + (1 - min_area) * uniform()
    aspect = torch.exp((uniform() - 0.5) * 2 * math.log(4 / 3))
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    if min_area == 1:
        width, height = torch.ones(count), torch.ones(count)
    left, top = (uniform() * 2 - 1) * (1 - width), (uniform() * 2 - 1) * (1 - height)
    sign = torch.where(uniform() < 0.5, -1.0, 1.0) if flip else torch.ones(count)
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0], affine[:, 0, 2] = width * sign, left
    affine[:, 1, 1], affine[:, 1, 2] = height, top
    with torch.autocast(images.device.type, enabled=False):  # bf16 would move pixels
        grid = F.affine_grid(to_device(affine, images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _masked_loss(model: ViTMAEForPreTraining, images: Tensor, generator: torch.Generator) -> Tensor:
    num_patches = model.vit.embeddings.patch_embeddings.num_patches
    noise = own(torch.rand(whole(len(images)), num_patches, generator=generator))
    noise = to_device(noise, images.device)  # says which patches are hidden
    return model(pixel_values=images, noise=noise).loss


@torch.no_grad()
def _heldout_loss(config: ImageMaeConfig, model: ViTMAEForPreTraining, heldout: np.ndarray) -> float:
    generator, device = torch.Generator().manual_seed(0), next(model.parameters()).device
    parts = torch.from_numpy(heldout).split(256)
    total = 0.0
    for part in parts:
        total += len(part) * _masked_loss(model, normalise(part.to(device), config), generator).item()
    return total / len(heldout)
