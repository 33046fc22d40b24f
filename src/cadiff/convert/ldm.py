"""Label-to-image latent diffusion in the CompVis layout (Rombach et al. 2022) -> an image prior.

The names of the networks are translated by diffusers' own helpers; every weight of ours must then be there and every weight of
theirs used, or the file is refused.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from cadiff.convert.ldm_settings import make_schedule, unet_config, vq_config
from cadiff.convert.recognise import CONDITION, FIRST_STAGE, UNET, Found
from cadiff.convert.tensor_refs import TensorRef
from cadiff.errors import ArtifactError
from cadiff.priors.load import save_prior

TIME_HEAD = "time_embed_condtion."  # the released code's spelling: the head of MinD-Vis inside the U-Net
AVERAGED = "model_ema."
LABELS = f"{CONDITION}embedding.weight"

Tensors = Callable[[Mapping[str, TensorRef]], Mapping[str, Tensor]]


def import_label_ldm(found: Found, out: Path, *, ema: bool, facts: Mapping[str, Any]) -> Path:
    """Writes a prior folder from a label-to-image checkpoint, in the precision it is stored in.

    Args:
        ema: take the averaged weights of the denoiser.
        facts: for prior.json.

    Raises:
        ArtifactError: the checkpoint is incomplete, has no averaged weights though `ema` asks for them, or `out` exists.
        ConfigError: it is a model that a prior cannot be made of.
    """
    schedule = make_schedule(found)
    unet, vqvae, table = _networks(found, found.file.tensors, ema=ema)
    refs = [*unet_weights(found, ema=ema).values(), *first_stage(found).values(), found.weights[LABELS]]
    return save_prior(
        out,
        vqvae=vqvae,
        unet=unet,
        scheduler=schedule,
        label_embedding=table,
        about={**label_names(len(table)), "weights": "averaged" if ema else "last step", **facts},
        dtype=getattr(torch, precision(refs)),
    )


def check(found: Found) -> None:
    """Raises `ArtifactError` unless every weight is there, in its shape; reads none of them."""
    _networks(found, found.meta, ema=False)


def _networks(found: Found, tensors: Tensors, *, ema: bool) -> tuple[UNet2DConditionModel, VQModel, Tensor]:
    unet, vqvae = make_unet(found, tensors, ema=ema), make_vqvae(found, tensors)
    width, wanted = found.size(LABELS, 2)[1], unet.config["cross_attention_dim"]
    if width != wanted:
        raise ArtifactError(
            f"{found.file.path}: labels have width {width}, the denoiser attends to {wanted}: the file mixes two models."
        )
    return unet, vqvae, tensors({LABELS: found.weights[LABELS]})[LABELS]


def unet_weights(found: Found, *, ema: bool) -> dict[str, TensorRef]:
    """The denoiser's weights without their prefix and without the time head of MinD-Vis; the averaged ones on request.

    The averages are kept under flattened names: `diffusion_model.out.0.weight` is `model_ema.diffusion_modelout0weight`.

    Raises:
        ArtifactError: `ema` with a checkpoint that keeps no averages, or not all.
    """
    raw = {name: ref for name, ref in found.under(UNET).items() if not name.startswith(TIME_HEAD)}
    if not ema:
        return raw
    if not has_ema(found):
        raise ArtifactError(
            f"{found.file.path} keeps no averaged weights (model_ema.*): import it without --ema."
        )
    flat = {name: AVERAGED + f"diffusion_model.{name}".replace(".", "") for name in raw}
    if lost := [key for key in flat.values() if key not in found.weights]:
        raise ArtifactError(
            f"{found.file.path} lacks {len(lost)} of {len(raw)} averaged weights (first: {lost[0]}): import it without "
            "--ema."
        )
    return {name: found.weights[key] for name, key in flat.items()}


def has_ema(found: Found) -> bool:
    """Whether the checkpoint keeps averaged weights."""
    return any(name.startswith(f"{AVERAGED}diffusion_model") for name in found.weights)


def first_stage(found: Found) -> dict[str, TensorRef]:
    """The auto-encoder's weights without their prefix, and without those of its training loss."""
    return {name: ref for name, ref in found.under(FIRST_STAGE).items() if not name.startswith("loss.")}


def make_unet(found: Found, tensors: Tensors, *, ema: bool) -> UNet2DConditionModel:
    """The denoiser in its precision, with an identity class embedding, which takes the time vector.

    Args:
        tensors: `found.file.tensors`, or `found.meta` to try the fit alone.

    Raises:
        ArtifactError: weights are missing, unknown or of another shape.
    """
    config, refs = unet_config(found), unet_weights(found, ema=ema)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config, class_embed_type="identity")
    named = {UNET + name: value for name, value in tensors(refs).items()}
    return _fill(unet, convert_ldm_unet_checkpoint(named, config), len(named), found, "denoiser")


def make_vqvae(found: Found, tensors: Tensors) -> VQModel:
    """The auto-encoder, as `make_unet`."""
    config = vq_config(found)
    with torch.device("meta"):
        vqvae = VQModel(**config)
    named = {FIRST_STAGE + name: value for name, value in tensors(first_stage(found)).items()}
    renamed = convert_ldm_vae_checkpoint(named, config)
    codebook = "quantize.embedding.weight"  # which the helper leaves out
    return _fill(
        vqvae, {**renamed, codebook: named[FIRST_STAGE + codebook]}, len(named), found, "auto-encoder"
    )


def _fill(network: Any, weights: Mapping[str, Tensor | None], number: int, found: Found, part: str) -> Any:
    expected: dict[str, Tensor] = network.state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        wanted, there = expected.get(name), weights.get(name)
        if wanted is None or there is None or wanted.shape != there.shape:
            raise ArtifactError(
                f"{found.file.path}: weight {name} (diffusers' name) of its {part} is "
                f"{'absent' if there is None else tuple(there.shape)}, expected "
                f"{'no such weight' if wanted is None else tuple(wanted.shape)}: it is incomplete, or another model."
            )
    if len(weights) != number:
        raise ArtifactError(
            f"{found.file.path}: its {part} has {number} weights, of which only {len(weights)} are known: it is another "
            "model."
        )
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)


def label_names(rows: int) -> dict[str, Any]:
    """What prior.json says of a label table: ImageNet's 1,000 classes (and row 1,000 for "no label"), or plain numbers."""
    if rows not in (1000, 1001):
        return {"classes": [str(row) for row in range(rows)], "names": []}
    text = (resources.files("cadiff") / "assets" / "imagenet_classes.tsv").read_text()
    table = list(csv.DictReader(text.splitlines(), delimiter="\t"))
    return {
        "classes": [row["class"] for row in table],
        "names": [row["name"] for row in table],
        "imagenet_index": list(range(1000)),
        "null_label": 1000 if rows == 1001 else None,
    }


def precision(refs: Iterable[TensorRef]) -> str:
    """The one floating precision of these weights, or float32 where they are mixed or double."""
    found = {ref.dtype for ref in refs if ref.dtype in ("float16", "bfloat16", "float32", "float64")}
    return found.pop() if len(found) == 1 and "float64" not in found else "float32"


def facts(found: Found) -> list[tuple[str, str]]:
    """What `describe` says of denoiser, auto-encoder and labels: (label, text)."""
    unet, vq, noise = unet_config(found), vq_config(found), make_schedule(found).config
    side, heads = unet["sample_size"], unet["attention_head_dim"]
    attended = sum(name.startswith("CrossAttn") for name in unet["down_block_types"])
    curve = noise["beta_schedule"] if noise["trained_betas"] is None else "of its own"
    lines = [
        (
            "denoiser",
            f"U-Net of widths {_list(unet['block_out_channels'])}, {unet['layers_per_block']} blocks a level, cross attention "
            f"to width {unet['cross_attention_dim']} on {attended} levels with {heads} head{'s' * (heads > 1)}, latents "
            f"{unet['in_channels']} x {side} x {side}: {_numel(unet_weights(found, ema=False)):,} parameters",
        ),
        (
            "auto-encoder",
            f"VQ of widths {_list(vq['block_out_channels'])}, {vq['num_vq_embeddings']:,} codes of {vq['vq_embed_dim']}, "
            f"{vq['sample_size']} pixels, latents times {vq['scaling_factor']:g}: {_numel(first_stage(found)):,} parameters",
        ),
        (
            "noise",
            f"{noise['num_train_timesteps']} steps, betas {noise['beta_start']:g} to {noise['beta_end']:g}, {curve} "
            + ("(in the file)" if "betas" in found.weights else "(as published: the file does not say)"),
        ),
        ("averages", "kept: --ema takes them" if has_ema(found) else "none"),
    ]
    if LABELS in found.weights:
        rows, width = found.size(LABELS, 2)
        kinds = {1000: "ImageNet's classes", 1001: "ImageNet's classes and no label"}
        lines.insert(2, ("labels", f"{rows:,} of width {width}: {kinds.get(rows, 'classes without names')}"))
    return lines


def _list(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _numel(refs: Mapping[str, TensorRef]) -> int:
    return sum(ref.numel for ref in refs.values())
