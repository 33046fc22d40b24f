"""Latent diffusion models that MinD-Vis or CAD tuned on fMRI -> pipeline folders that `cadiff reconstruct` takes.

The file holds the denoiser with the time head inside it, the VQ auto-encoder, the fMRI encoder and its two mappers. It lacks the
statistics by which the subject's betas were normalised, which are measured again on the training trials of a dataset, and a
condition for "no brain", for which the mean condition of 64 of those trials is taken: the tuned model has none, since it uses no
guidance.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cadiff.contrast.mae import FmriMaeConfig
from cadiff.convert.fmri import SCALAR, encoder_line, make_encoder, sizes
from cadiff.convert.ldm import TIME_HEAD, make_unet, make_vqvae
from cadiff.convert.ldm import facts as ldm_facts
from cadiff.convert.ldm_settings import make_schedule
from cadiff.convert.recognise import CONDITION, UNET, Found
from cadiff.convert.tensor_refs import TensorRef
from cadiff.data.dataset import BrainDataset
from cadiff.data.preprocess import Preprocessor, target_length
from cadiff.diffuse.conditioner import FmriConditioner
from cadiff.diffuse.stage import save_pipeline
from cadiff.errors import ArtifactError, ConfigError, DataError
from cadiff.priors.load import ImagePrior

MAE = f"{CONDITION}mae."
NULL_TRIALS = 64
OFFICIAL = SCALAR.model_copy(update={"length_policy": "official"})
"""How the released code prepares training trials; test trials are scaled like them, which it forgets for GOD."""


def import_brain_ldm(
    found: Found, out: Path, dataset: Path | None, *, ema: bool, facts: Mapping[str, Any]
) -> Path:
    """Writes a pipeline folder, float32.

    Args:
        dataset: dataset folder of the subject that the model was tuned on; only its training trials are read.
        ema: take the averaged weights of the denoiser.
        facts: for provenance.json.

    Raises:
        ConfigError: no dataset.
        DataError: the dataset is of another subject (its voxels come to another length), or has no training trials.
        ArtifactError: the file is incomplete, or `out` exists.
    """
    size = sizes(found, MAE)
    heads = head_weights(found, size)
    if dataset is None:
        raise ConfigError(
            f"{found.file.path} is tuned on one subject, whose statistics it does not hold: add --dataset with that "
            f"subject's dataset folder ({size.num_voxels:,} values a trial, once its voxels are filled up to whole patches)."
        )
    data = BrainDataset.open(dataset)
    preprocessor = _preprocessor(data, size, found)
    encoder = make_encoder("FmriEncoder", size, None, found.file.tensors(_mae(found)), found.file.path)
    unet = make_unet(found, found.file.tensors, ema=ema).float()
    vqvae = make_vqvae(found, found.file.tensors).float()
    prior = ImagePrior(vqvae, unet, make_schedule(found), scaling_factor=vqvae.config["scaling_factor"])
    conditioner = FmriConditioner.build(
        encoder,
        preprocessor,
        prior,
        context_length=heads["channel_mapper.1.weight"].shape[0],
        null="mean",
        generator=torch.Generator().manual_seed(0),
    )
    own = _same_shapes(conditioner, heads, found)
    for name, value in found.file.tensors(heads).items():
        own[name].copy_(value)
    rows = data.rows("train")
    some = rows[
        np.unique(np.linspace(0, len(rows) - 1, NULL_TRIALS).astype(int))
    ]  # all would take an hour on a CPU
    conditioner.set_null(conditioner.encode(data.betas[some], split="train"))
    return save_pipeline(out, prior, conditioner, {**facts, "weights": "averaged" if ema else "last step"})


def check(found: Found) -> None:
    """Raises `ArtifactError` unless every weight is there, in its shape; reads none of them."""
    size = sizes(found, MAE)
    heads = head_weights(found, size)
    make_encoder("FmriEncoder", size, None, found.meta(_mae(found)), found.file.path)
    unet = make_unet(found, found.meta, ema=False)
    make_vqvae(found, found.meta)
    with torch.device("meta"):
        conditioner = FmriConditioner(
            encoder_config=size.model_dump(),
            preprocess_config={},
            context_dim=unet.config["cross_attention_dim"],
            time_dim=unet.config["block_out_channels"][0] * 4,
            context_length=heads["channel_mapper.1.weight"].shape[0],
        )
    _same_shapes(conditioner, heads, found)


def head_weights(found: Found, encoder: FmriMaeConfig) -> dict[str, TensorRef]:
    """The weights of channel_mapper, dim_mapper and time_head, under our names.

    Raises:
        ArtifactError: they are missing, as in a model that pools its tokens into one, or fit another encoder.
    """
    sources = {
        f"{CONDITION}channel_mapper.": "channel_mapper.",
        f"{CONDITION}dim_mapper.": "dim_mapper.",
        UNET + TIME_HEAD: "time_head.",
    }
    heads = {new + name: ref for old, new in sources.items() for name, ref in found.under(old).items()}
    layers = ["dim_mapper", *(f"channel_mapper.{i}" for i in range(2)), *(f"time_head.{i}" for i in range(3))]
    expected = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    if heads.keys() != expected:
        raise ArtifactError(
            f"{found.file.path}: the heads of its condition are not those of the published model (first difference: "
            f"{min(heads.keys() ^ expected)}); models with global_pool=True or use_time_cond=False are not taken."
        )
    tokens = found.size(f"{CONDITION}channel_mapper.0.weight", 3)[1]
    if tokens != encoder.num_tokens:
        raise ArtifactError(
            f"{found.file.path}: its encoder makes {encoder.num_tokens} tokens, its mapper reads {tokens}: the file mixes "
            "two models."
        )
    return heads


def _same_shapes(
    conditioner: FmriConditioner, heads: Mapping[str, TensorRef], found: Found
) -> dict[str, Tensor]:
    """The conditioner's own weights under the names of `heads`."""
    state = conditioner.state_dict()
    for name, ref in heads.items():
        if state[name].shape != ref.shape:
            raise ArtifactError(
                f"{found.file.path}: its head {name} is {ref.shape}, expected {tuple(state[name].shape)}: the file mixes two "
                "models."
            )
    return {name: state[name] for name in heads}


def _mae(found: Found) -> dict[str, TensorRef]:
    return {name: ref for name, ref in found.under(MAE).items() if name != "mask_token"}  # never used


def _preprocessor(data: BrainDataset, encoder: FmriMaeConfig, found: Found) -> Preprocessor:
    rows = data.rows("train")
    if len(rows) == 0:
        raise DataError(
            f"{data.folder} has no training trials, whose statistics the model needs: give the subject's whole dataset."
        )
    voxels = data.betas.shape[1]
    length = target_length(voxels, encoder.patch_size, None, OFFICIAL.length_policy)
    if length != encoder.num_voxels:
        raise DataError(
            f"{found.file.path} reads {encoder.num_voxels:,} values a trial, but the {voxels:,} voxels of {data.folder} come to "
            f"{length:,}: give the dataset of the subject it was tuned on, with the same voxels (of GOD those of the ROI VC: "
            "`cadiff data prepare --set rois=[VC]`)."
        )
    return Preprocessor.fit(data.betas[rows], OFFICIAL, patch_size=encoder.patch_size)


def facts(found: Found) -> list[tuple[str, str]]:
    """What `describe` says of the tuned model: (label, text)."""
    encoder = sizes(found, MAE)
    heads = head_weights(found, encoder)
    length = found.size(f"{CONDITION}channel_mapper.1.weight", 3)[0]
    width = found.size(f"{CONDITION}dim_mapper.weight", 2)[0]
    numel = {
        part: sum(ref.numel for ref in refs.values())
        for part, refs in (("mae", _mae(found)), ("heads", heads))
    }
    return [
        ("input", f"{encoder.num_voxels:,} values: {encoder.num_tokens} patches of {encoder.patch_size}"),
        ("encoder", f"{encoder_line(encoder)}: {numel['mae']:,} parameters"),
        ("condition", f"{length} tokens of width {width}, and a time vector: {numel['heads']:,} parameters"),
        *ldm_facts(found),
        ("missing", "the subject's statistics: --dataset gives them"),
    ]
