"""Image auto-encoders (He et al. 2022) of facebookresearch/mae and of transformers -> a folder that `load_image_mae` opens.

The names of the weights have four spellings: facebook's (fused qkv), transformers' up to 4 ("legacy", written here since every
release reads it), transformers' 5 in memory, and the mixture that its `save_pretrained` writes. Heads and eps leave no trace in
the shapes: they are read from a config.json beside the file, or are those of the published models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from cadiff.artifacts import new_folder, read_json, write_json
from cadiff.attend.image_mae import IMAGENET_MEAN, IMAGENET_STD
from cadiff.convert.recognise import Found, attributes, count_blocks
from cadiff.errors import ArtifactError

# In this order, each as often as it fits; the last names are transformers' up to 4.
FACEBOOK = (
    (r"^(cls_token)$", r"vit.embeddings.\1"),
    (r"^pos_embed$", "vit.embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "vit.embeddings.patch_embeddings.projection."),
    (r"^norm\.", "vit.layernorm."),
    (r"^blocks\.", "vit.encoder.layer."),
    (r"^decoder_blocks\.", "decoder.decoder_layers."),
    (r"^(mask_token|decoder_pos_embed|decoder_(?:embed|norm|pred)\..*)$", r"decoder.\1"),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
TRANSFORMERS = (
    (r"^(embeddings|encoder|layernorm|layers)\.", r"vit.\1."),  # a ViTMAEModel alone
    (r"^vit\.layers\.", "vit.encoder.layer."),
    (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
ENCODER_ONLY = "the decoder: phase 2 (`attend`) needs one, take a checkpoint that holds both"
DECODER_HEADS = 16  # of every decoder that was published


def rename(found: Found) -> dict[str, tuple[str, int | None]]:
    """Legacy name -> (name in the file, which third of it, or None for all of it)."""
    rules = FACEBOOK if found.system == "facebook-mae" else TRANSFORMERS
    names: dict[str, tuple[str, int | None]] = {}
    for name in found.weights:
        renamed = name
        for pattern, replacement in rules:
            renamed = re.sub(pattern, replacement, renamed)
        if ".attn.qkv." in renamed:
            for third, part in enumerate(("query", "key", "value")):
                names[renamed.replace(".attn.qkv.", f".attention.attention.{part}.")] = (name, third)
        else:
            names[renamed] = (name, None)
    if not any(name.startswith("decoder.decoder_layers.") for name in names):
        names.pop("decoder.mask_token", None)
    return names


def mae_config(found: Found) -> ViTMAEConfig:
    """The model's settings: sizes from the shapes, the rest from the config.json beside the file, or as published.

    Raises:
        ArtifactError: weights are missing, or their shapes do not make a ViT-MAE.
    """
    names, stored = rename(found), _beside(found, "config.json")

    def size(name: str, dimensions: int) -> tuple[int, ...]:
        return found.size(names[name][0] if name in names else name, dimensions)

    width, channels, patch, _ = size("vit.embeddings.patch_embeddings.projection.weight", 4)
    side = round((size("vit.embeddings.position_embeddings", 3)[1] - 1) ** 0.5)
    depth = count_blocks(names, "decoder.decoder_layers.")
    facebook = found.system == "facebook-mae"
    values: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": count_blocks(names, "vit.encoder.layer."),
        "num_attention_heads": stored.get(
            "num_attention_heads", 16 if width == 1280 else max(1, width // 64)
        ),
        "intermediate_size": size("vit.encoder.layer.0.intermediate.dense.weight", 2)[0],
        "image_size": side * patch,
        "patch_size": patch,
        "num_channels": channels,
        "layer_norm_eps": stored.get("layer_norm_eps", 1e-6 if facebook else 1e-12),
        "norm_pix_loss": stored.get("norm_pix_loss", found.setting("norm_pix_loss", False)),
    }
    if depth:
        values |= {
            "decoder_hidden_size": size("decoder.decoder_embed.weight", 2)[0],
            "decoder_num_hidden_layers": depth,
            "decoder_num_attention_heads": stored.get("decoder_num_attention_heads", DECODER_HEADS),
            "decoder_intermediate_size": size("decoder.decoder_layers.0.intermediate.dense.weight", 2)[0],
        }
    for kind in ("", "decoder_"):
        wide, heads = values.get(f"{kind}hidden_size", 1), values.get(f"{kind}num_attention_heads", 1)
        if type(heads) is not int or heads < 1 or wide % heads:
            raise ArtifactError(
                f"{found.file.path}: a width of {wide} does not go with {heads} heads: it is another model."
            )
    try:
        return ViTMAEConfig(**values)
    except (ValueError, TypeError) as error:  # a config.json with settings of the wrong kind
        raise ArtifactError(
            f"{found.file.path}: its settings make no ViT-MAE ({' '.join(str(error).split())[:150]})."
        ) from None


def import_image_mae(found: Found, out: Path, facts: Mapping[str, Any]) -> Path:
    """Writes config.json, model.safetensors (float32), input.json and provenance.json.

    Raises:
        ArtifactError: a weight is missing, superfluous or of another shape, or `out` exists.
    """
    config = mae_config(found)
    check(found)
    weights, decoder = _weights(found), has_decoder(found)
    look = _beside(found, "preprocessor_config.json")
    about = {
        "mean": look.get("image_mean", list(IMAGENET_MEAN)),
        "std": look.get("image_std", list(IMAGENET_STD)),
        "input": "RGB in 0..1, normalised",
    }
    with new_folder(out) as temporary:
        config.architectures = ["ViTMAEForPreTraining" if decoder else "ViTMAEModel"]
        config.save_pretrained(temporary)
        save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
        write_json(temporary / "input.json", about)
        write_json(temporary / "provenance.json", dict(facts))
    return out


def check(found: Found) -> None:
    """Raises `ArtifactError` unless every weight of encoder and decoder (where there is one) is there; reads none of them."""
    with torch.device("meta"):
        model = ViTMAEForPreTraining(mae_config(found))
    parts = ("vit.", "decoder.") if has_decoder(found) else ("vit.",)
    expected = {
        _legacy(name): tuple(value.shape)
        for name, value in model.state_dict().items()
        if name.startswith(parts)
    }
    there = {}
    for name, (source, third) in rename(found).items():
        shape = found.weights[source].shape
        there[name] = shape if third is None else (shape[0] / 3, *shape[1:])
    if "decoder.decoder_pos_embed" not in there:  # a sine table, which is filled in when the folder is opened
        expected.pop("decoder.decoder_pos_embed", None)
    for name in sorted(expected.keys() | there.keys()):
        if expected.get(name) != there.get(name):
            raise ArtifactError(
                f"{found.file.path}: weight {name} is {there.get(name, 'absent')}, expected "
                f"{expected.get(name, 'no such weight')}: it is incomplete, or another model."
            )


def has_decoder(found: Found) -> bool:
    """Whether the decoder is in the file."""
    return any(
        name.startswith(("decoder.decoder_layers.", "decoder.decoder_encoder.", "decoder_blocks."))
        for name in found.weights
    )


def _weights(found: Found) -> dict[str, Tensor]:
    stored, weights = found.file.tensors(found.weights), {}
    for name, (source, third) in rename(found).items():
        value = stored[source] if third is None else stored[source].chunk(3)[third]
        weights[name] = value.float().contiguous()
    return weights


def _legacy(name: str) -> str:
    for pattern, replacement in TRANSFORMERS:
        name = re.sub(pattern, replacement, name)
    return name


def _beside(found: Found, name: str) -> dict[str, Any]:
    """A settings file of transformers in the same folder; {} without one, and for facebook's layout."""
    path = found.file.path.with_name(name)
    return attributes(read_json(path)) if found.system == "vit-mae" and path.is_file() else {}


def facts(found: Found) -> list[tuple[str, str]]:
    """What `describe` says of the auto-encoder: (label, text)."""
    config: Any = mae_config(found)
    numel = {True: 0, False: 0}
    for name, (source, third) in rename(found).items():
        numel[name.startswith("vit.")] += found.weights[source].numel // (1 if third is None else 3)
    patches = (config.image_size // config.patch_size) ** 2
    encoder = (
        f"{config.num_hidden_layers} layers of width {config.hidden_size}, {config.num_attention_heads} heads"
    )
    lines = [
        ("pictures", f"{config.image_size} pixels: {patches} patches of {config.patch_size}"),
        ("encoder", f"{encoder}: {numel[True]:,} parameters"),
    ]
    if not has_decoder(found):
        return [*lines, ("missing", ENCODER_ONLY)]
    known = "norm_pix_loss" in (_beside(found, "config.json") or attributes(found.about.get("args")))
    target = "patches scaled one by one (norm_pix_loss)" if config.norm_pix_loss else "pixels as they are"
    decoder = f"{config.decoder_num_hidden_layers} layers of width {config.decoder_hidden_size}"
    heads = config.decoder_num_attention_heads
    return [
        *lines,
        ("decoder", f"{decoder}, {heads} heads: {numel[False]:,} parameters"),
        ("predicts", target if known else f"{target}, as far as known: the file does not say"),
    ]
