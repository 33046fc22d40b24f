"""One network of a prior's folder, as diffusers saves it: config.json and weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import SafetensorError
from torch import Tensor

from cadiff.artifacts import read_json
from cadiff.errors import ArtifactError, ConfigError

WEIGHTS = "diffusion_pytorch_model.safetensors"


def load_part(cls: Any, folder: Path, **changes: Any) -> Any:
    """The network of class `cls` in `folder`, float32 on the CPU, not to be trained; `changes` go over its config.

    Raises:
        ArtifactError: missing, damaged or incomplete. ConfigError: another class, or a U-Net that embeds classes.
    """
    if not (folder / "config.json").is_file():
        raise ArtifactError(
            f"{folder.parent} lacks {folder.name}/config.json: a prior has vqvae/, unet/, scheduler/."
        )
    config = read_json(folder / "config.json")
    if config.get("_class_name") != cls.__name__:
        raise ConfigError(f"{folder} holds a {config.get('_class_name')}, expected a {cls.__name__}.")
    if cls is UNet2DConditionModel and config.get("class_embed_type") not in (None, "identity"):
        raise ConfigError(
            f"{folder} embeds classes by {config['class_embed_type']!r}; that path must be free here."
        )
    try:
        loaded: Any = cls.from_pretrained(
            folder, torch_dtype=torch.float32, use_safetensors=True, output_loading_info=True, **changes
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, json.JSONDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(
            f"{folder} cannot be loaded ({reason}): it is damaged or incomplete, copy it again."
        ) from None
    model, info = loaded
    if wrong := info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
        raise ArtifactError(
            f"The weights in {folder} do not fit its config.json (first: {wrong[0]}): copy it again."
        )
    return model.eval().requires_grad_(False)


def stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor as it is written: on the CPU, floats as `dtype`."""
    value = value.detach().cpu()
    return (value.to(dtype) if value.is_floating_point() else value).contiguous()
