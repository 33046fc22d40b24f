"""fMRI auto-encoders of MinD-Vis (Chen et al. 2023) and CAD (Sun et al. 2023) -> encoder folders.

The names of the weights are already ours, so importing is the identity: sizes are read from the shapes, heads from the settings
that lie beside the weights (they leave no trace in the shapes), and the length of the input from the position table.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cadiff.contrast.cross import CrossConfig
from cadiff.contrast.encoder_folder import build, fit_preprocessor, load_weights, save_encoder
from cadiff.contrast.mae import FmriEncoder, FmriMaeConfig
from cadiff.convert.recognise import Found, attributes, count_blocks
from cadiff.data.dataset import BrainDataset
from cadiff.data.preprocess import PreprocessConfig, Preprocessor
from cadiff.errors import ArtifactError

HEADS, CROSS_HEADS = 16, 12
"""Of the published models, where a file does not say."""
LEFT_OUT = ("nature_img_", "conv_up", "linear_up", "cond_", "logit_scale")
"""Beginnings of weights of unused variants of the released code."""
SCALAR = PreprocessConfig(normalise="scalar")
"""One mean and deviation a subject, as of the betas that the released weights learned from."""


def sizes(found: Found, prefix: str = "") -> FmriMaeConfig:
    """The sizes of the auto-encoder whose weights begin with `prefix`; of a lone encoder, the decoder's are the defaults.

    Raises:
        ArtifactError: weights are missing, or their shapes do not make an fMRI auto-encoder.
    """
    dim, channels, patch_size = found.size(f"{prefix}patch_embed.proj.weight", 3)
    _, tokens, width = found.size(f"{prefix}pos_embed", 3)
    if channels != 1 or width != dim or tokens < 2:
        raise ArtifactError(
            f"{found.file.path}: patch_embed.proj.weight is {(dim, channels, patch_size)} and pos_embed "
            f"{(1, tokens, width)}: no encoder of fMRI, which reads one channel and adds positions of its own width."
        )
    names = list(found.weights)
    values: dict[str, Any] = {
        "num_voxels": (tokens - 1) * patch_size,
        "patch_size": patch_size,
        "embed_dim": dim,
        "depth": count_blocks(names, f"{prefix}blocks."),
        "num_heads": found.setting("num_heads", HEADS),
        "mlp_ratio": found.size(f"{prefix}blocks.0.mlp.fc1.weight", 2)[0] / dim,
    }
    if has_decoder(found) and not prefix:
        values |= {
            "decoder_embed_dim": found.size("decoder_embed.weight", 2)[0],
            "decoder_depth": count_blocks(names, "decoder_blocks."),
            "decoder_num_heads": found.setting("decoder_num_heads", HEADS),
        }
    return _checked(FmriMaeConfig, values, found)


def cross_sizes(found: Found) -> CrossConfig | None:
    """The sizes of the cross blocks of phase 2, or None without any; heads and eps from the image encoder's settings."""
    if found.system != "fmri-cross":
        return None
    image = attributes(attributes(found.about.get("config_merge")).get("cross_img_encoder_config"))
    heads, eps = image.get("num_attention_heads"), image.get("layer_norm_eps")
    values = {
        "width": found.size("cross_map_in.weight", 2)[0],
        "depth": count_blocks(found.weights, "cross_blocks."),
        "num_heads": heads if type(heads) is int else CROSS_HEADS,
        "mlp_dim": found.size("cross_blocks.0.intermediate.dense.weight", 2)[0],
        "layer_norm_eps": eps if type(eps) is float else 1e-12,
        "residual": found.setting("do_cross_residual", True),
    }
    config = _checked(CrossConfig, values, found)
    if config.width % config.num_heads:
        raise ArtifactError(
            f"{found.file.path}: cross blocks of width {config.width} cannot have {config.num_heads} heads: the file mixes two "
            "models."
        )
    return config


def has_decoder(found: Found) -> bool:
    """Whether the auto-encoder's decoder is in the file."""
    return any(name.startswith("decoder_") for name in found.weights)


def encoder_weights(found: Found) -> tuple[str, dict[str, Any]]:
    """Name of our class, and the weights it takes: all but those of unused variants of the released code."""
    name = "FmriCross" if found.system == "fmri-cross" else "FmriMae" if has_decoder(found) else "FmriEncoder"
    dropped = (*LEFT_OUT, "mask_token") if name == "FmriEncoder" else LEFT_OUT
    return name, {key: ref for key, ref in found.weights.items() if not key.startswith(dropped)}


def make_encoder(
    name: str, config: FmriMaeConfig, cross: CrossConfig | None, weights: Mapping[str, Tensor], source: Path
) -> FmriEncoder:
    """Our encoder with these weights, float32; they may be on the device "meta".

    Raises:
        ArtifactError: a weight is missing, superfluous or of another shape.
    """
    with torch.device("meta"):
        model = build(name, config, cross, source)
    try:
        load_weights(model, weights, source)
    except ArtifactError as error:
        advice = "the file is incomplete, or of another model"
        raise ArtifactError(
            str(error).replace("the folder mixes two models, make it again", advice)
        ) from None
    return model.eval()


def import_encoder(found: Found, out: Path, dataset: Path | None, facts: Mapping[str, Any]) -> Path:
    """Writes an encoder folder; `dataset` gives the statistics of its preprocessing, which later stages measure again anyway.

    Raises:
        ArtifactError: the file is no whole encoder, or `out` exists.
        DataError: `dataset` has no trial to measure.
    """
    config, cross = sizes(found), cross_sizes(found)
    name, refs = encoder_weights(found)
    model = make_encoder(name, config, cross, found.file.tensors(refs), found.file.path)
    return save_encoder(out, model, preprocessor(config, dataset), facts)


def check(found: Found) -> None:
    """Raises `ArtifactError` unless every weight of the auto-encoder is there, in its shape; reads none of them."""
    name, refs = encoder_weights(found)
    make_encoder(name, sizes(found), cross_sizes(found), found.meta(refs), found.file.path)


def preprocessor(config: FmriMaeConfig, dataset: Path | None) -> Preprocessor:
    """The preprocessing to the encoder's length; without a dataset it takes z-scored vectors of that length."""
    if dataset is None:
        standard = np.outer([-1.0, 1.0], np.ones(config.num_voxels))  # two trials of mean 0 and deviation 1
        return Preprocessor.fit(standard, SCALAR, patch_size=config.patch_size, num_voxels=config.num_voxels)
    data = BrainDataset.open(dataset)
    return fit_preprocessor(data, SCALAR, patch_size=config.patch_size, num_voxels=config.num_voxels)


def facts(found: Found) -> list[tuple[str, str]]:
    """What `describe` says of the auto-encoder: (label, text)."""
    config, cross = sizes(found), cross_sizes(found)
    _, refs = encoder_weights(found)
    parts = {"encoder": 0, "decoder": 0, "cross": 0}
    for name, ref in refs.items():
        part = name.split("_")[0]
        parts["decoder" if name == "mask_token" else part if part in parts else "encoder"] += ref.numel
    lines = [
        ("input", f"{config.num_voxels:,} values: {config.num_tokens} patches of {config.patch_size}"),
        ("encoder", f"{encoder_line(config)}: {parts['encoder']:,} parameters"),
    ]
    if cross is not None:
        text = f"{cross.depth} blocks of width {cross.width}, {cross.num_heads} heads"
        lines.append(("cross attention", f"{text}: {parts['cross']:,} parameters"))
    if has_decoder(found):
        text = f"{config.decoder_depth} blocks of width {config.decoder_embed_dim}, {config.decoder_num_heads} heads"
        lines.append(("decoder", f"{text}: {parts['decoder']:,} parameters"))
    else:
        lines.append(("missing", "the decoder, which phases 1 and 2 train with; `diffuse` does not need it"))
    if cross is not None:
        lines.append(
            (
                "missing",
                "the image side, which the released phase 2 does not save; `diffuse` does not need it",
            )
        )
    if left := len(found.weights) - len(refs):
        lines.append(("left out", f"{left} weights of variants that the released code does not use"))
    return lines


def encoder_line(config: FmriMaeConfig) -> str:
    """The sizes of the encoder in words."""
    hidden = int(config.embed_dim * config.mlp_ratio)
    return f"{config.depth} blocks of width {config.embed_dim}, {config.num_heads} heads, MLP {hidden}"


def _checked(kind: Any, values: Mapping[str, Any], found: Found) -> Any:
    try:
        return kind(**values)
    except ValueError as error:  # of pydantic: sizes that do not go together
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(
            f"{found.file.path}: the sizes in it make no model ({reason}): it is incomplete, or of another model."
        ) from None
