"""Sizes and noise schedule of a latent diffusion model in the CompVis layout (Rombach et al. 2022).

All sizes are read from the shapes. Three things leave no trace in them: the number of attention heads, the side of the latents,
and what the denoiser predicts. They are those of the published label-to-image model (1 head, 64, the noise), unless the
`config.yaml` that CompVis and MinD-Vis put beside the checkpoint says otherwise. The noise schedule is in the file; a file
without it gets the published one.
"""

from __future__ import annotations

from typing import Any

import torch
import yaml
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from cadiff.convert.recognise import FIRST_STAGE, UNET, Found, attributes, count_blocks
from cadiff.errors import ArtifactError, ConfigError

GROUPS = 32  # of every GroupNorm in this layout
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
}


def unet_config(found: Found) -> dict[str, Any]:
    """Arguments of `UNet2DConditionModel`, from the shapes of input_blocks, middle_block and out.

    Raises:
        ArtifactError: weights are missing, or the levels of the network are not alike.
    """
    names = found.weights
    levels: list[list[tuple[int, bool]]] = [[]]  # of each level, (channels, attention) of each residual block
    for i in range(1, count_blocks(names, f"{UNET}input_blocks.")):
        block = f"{UNET}input_blocks.{i}"
        if f"{block}.0.op.weight" in names:
            levels.append([])
        else:
            channels = found.size(f"{block}.0.in_layers.2.weight", 4)[0]
            levels[-1].append((channels, f"{block}.1.norm.weight" in names))
    if any(len(level) != len(levels[0]) or len(set(level)) != 1 for level in levels):
        raise ArtifactError(
            f"{found.file.path}: the blocks of its denoiser differ within a level, (channels, attention): {levels}; "
            "expected alike ones: it is incomplete, or another model."
        )
    widths, attention = zip(*(level[0] for level in levels), strict=True)
    heads = _number(_unet_params(found).get("num_heads"), 1)
    if any(width % GROUPS or width % heads for width in widths):
        raise ArtifactError(
            f"{found.file.path}: a denoiser of widths {widths} does not go with groups of {GROUPS} and {heads} heads: "
            "it is another model."
        )
    return {
        "sample_size": _number(_unet_params(found).get("image_size"), 64),
        "in_channels": found.size(f"{UNET}input_blocks.0.0.weight", 4)[1],
        "out_channels": found.size(f"{UNET}out.2.weight", 4)[0],
        "down_block_types": tuple("CrossAttnDownBlock2D" if has else "DownBlock2D" for has in attention),
        "up_block_types": tuple("CrossAttnUpBlock2D" if has else "UpBlock2D" for has in attention[::-1]),
        "block_out_channels": widths,
        "layers_per_block": len(levels[0]),
        "cross_attention_dim": found.size(f"{_MIDDLE}transformer_blocks.0.attn2.to_k.weight", 2)[1],
        "attention_head_dim": heads,  # which UNet2DConditionModel takes as the number of heads
        "use_linear_projection": len(found.shape(f"{_MIDDLE}proj_in.weight")) == 2,
        "transformer_layers_per_block": count_blocks(names, f"{_MIDDLE}transformer_blocks."),
    }


_MIDDLE = f"{UNET}middle_block.1."


def vq_config(found: Found) -> dict[str, Any]:
    """Arguments of `VQModel`, from the shapes of the first stage.

    Raises:
        ArtifactError: weights are missing, such as the codebook of a KL auto-encoder, which has none.
    """
    at = FIRST_STAGE
    levels = count_blocks(found.weights, f"{at}encoder.down.")
    widths = tuple(found.size(f"{at}encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in range(levels))
    codes, code_dim = found.size(f"{at}quantize.embedding.weight", 2)
    if levels == 0 or any(width % GROUPS for width in widths):
        raise ArtifactError(
            f"{found.file.path}: an auto-encoder of widths {widths} does not go with groups of {GROUPS}: it is another "
            "model."
        )
    return {
        "in_channels": found.size(f"{at}encoder.conv_in.weight", 4)[1],
        "out_channels": found.size(f"{at}decoder.conv_out.weight", 4)[0],
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": widths,
        "layers_per_block": count_blocks(found.weights, f"{at}encoder.down.0.block."),
        "latent_channels": found.size(f"{at}encoder.conv_out.weight", 4)[0],
        "num_vq_embeddings": codes,
        "vq_embed_dim": code_dim,
        "norm_num_groups": GROUPS,
        "sample_size": _number(_unet_params(found).get("image_size"), 64) * 2 ** (levels - 1),
        "scaling_factor": _scale(found),
    }


def make_schedule(found: Found) -> DDIMScheduler:
    """The noise schedule that the checkpoint keeps as `betas`, or the published one.

    Raises:
        ConfigError: the settings beside the file say that the denoiser predicts something else than the noise.
    """
    predicts = _params_beside(found).get("parameterization", "eps")
    if predicts != "eps":
        raise ConfigError(
            f"{found.file.path}: its config.yaml says that the denoiser predicts {predicts!r}; expected eps, which "
            "tuning trains it to predict."
        )
    noise: dict[str, Any] = dict(SCHEDULE)
    if "betas" in found.weights:
        found.size("betas", 1)
        betas = found.file.tensors({"betas": found.weights["betas"]})["betas"].double()
        start, end = (float(f"{betas[i]:.6g}") for i in (0, -1))
        roots = torch.linspace(start**0.5, end**0.5, len(betas), dtype=torch.double)
        curves = {
            "scaled_linear": roots**2,
            "linear": torch.linspace(start, end, len(betas), dtype=torch.double),
        }
        fits = [name for name, curve in curves.items() if torch.allclose(curve, betas, rtol=1e-4)]
        noise |= {"num_train_timesteps": len(betas), "beta_start": start, "beta_end": end}
        noise |= {"beta_schedule": fits[0]} if fits else {"trained_betas": betas.tolist()}
    return DDIMScheduler(**noise, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def _scale(found: Found) -> float:
    """What latents are multiplied by: kept in the file where it was measured, else 1."""
    if "scale_factor" not in found.weights:
        return 1.0
    return float(found.file.tensors({"": found.weights["scale_factor"]})[""].double().mean())


def _unet_params(found: Found) -> dict[str, Any]:
    return attributes(attributes(_params_beside(found).get("unet_config")).get("params"))


def _params_beside(found: Found) -> dict[str, Any]:
    """`model.params` of a config.yaml in the checkpoint's folder; {} without one."""
    path = found.file.path.with_name("config.yaml")
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ArtifactError(
            f"{path}, beside the checkpoint, cannot be read ({reason}): mend it or move it away."
        ) from None
    return attributes(attributes(attributes(content).get("model")).get("params"))


def _number(value: Any, default: int) -> int:
    return value if type(value) is int and value > 0 else default
