"""The encoder folder: what phases 1 and 2 hand on, enough to rebuild the encoder and its preprocessing.

    config.json          kind "fmri-encoder"; class, sizes ("mae", "cross"), settings of the preprocessing
    model.safetensors    weights under the names of the released checkpoints, statistics under "preprocess."

Both phases write the same kind, so a later stage need not know which one made it.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cadiff.artifacts import load_artifact, read_json, save_artifact
from cadiff.contrast.cross import CrossConfig, FmriCross
from cadiff.contrast.mae import FmriEncoder, FmriMae, FmriMaeConfig
from cadiff.data.dataset import BrainDataset
from cadiff.data.preprocess import PreprocessConfig, Preprocessor, length_remark
from cadiff.errors import ArtifactError, DataError

KIND = "fmri-encoder"
STATISTICS = "preprocess."


def save_encoder(
    folder: Path, model: FmriEncoder, preprocessor: Preprocessor, provenance: Mapping[str, Any]
) -> Path:
    """Write an FmriEncoder, FmriMae or FmriCross with its preprocessing; the folder must not exist."""
    config: dict[str, Any] = {"class": type(model).__name__, "mae": model.config.model_dump()}
    if isinstance(model, FmriCross):
        config["cross"] = model.cross.model_dump()
    config["preprocess"] = preprocessor.config.model_dump()
    statistics = {
        STATISTICS + name: torch.from_numpy(array) for name, array in preprocessor.to_tensors().items()
    }
    tensors = {**model.state_dict(), **statistics}
    return save_artifact(folder, kind=KIND, config=config, tensors=tensors, provenance=provenance)


def load_encoder(folder: Path) -> tuple[FmriEncoder, Preprocessor]:
    """The encoder, of the class that was saved, float32 on the CPU in evaluation mode, and its preprocessing.

    Raises:
        ArtifactError: no encoder there, a damaged file, or weights that do not fit the recorded sizes.
    """
    config, tensors = load_artifact(folder, KIND)
    statistics = {
        key.removeprefix(STATISTICS): tensors.pop(key).numpy()
        for key in list(tensors)
        if key.startswith(STATISTICS)
    }
    sizes = FmriMaeConfig(**config["mae"])
    with torch.device("meta"):  # no random start for weights that are about to be replaced
        model = build(
            config["class"], sizes, CrossConfig(**config["cross"]) if "cross" in config else None, folder
        )
    load_weights(model, tensors, folder)
    return model.eval(), Preprocessor.from_tensors(PreprocessConfig(**config["preprocess"]), statistics)


def build(name: str, sizes: FmriMaeConfig, cross: CrossConfig | None, folder: Path) -> FmriEncoder:
    """An encoder by the name of its class. Raises ArtifactError for a name that is not known."""
    if name == "FmriCross" and cross is not None:
        return FmriCross(sizes, cross)
    classes = {"FmriEncoder": FmriEncoder, "FmriMae": FmriMae}
    if name not in classes:
        raise ArtifactError(
            f"{folder} holds an encoder of class {name!r}, which this cadiff does not know: update it."
        )
    return classes[name](sizes)


def load_weights(model: FmriEncoder, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Put `tensors` into `model` as float32; ArtifactError unless every name and shape fits."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ArtifactError(
                f"{source}: weight {name} is {found.get(name, 'absent')}, a {type(model).__name__} of these sizes "
                f"has {expected.get(name, 'no such weight')}: the folder mixes two models, make it again."
            )
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)


def encoder_protocol(folder: Path) -> str | None:
    """The protocol (docs/protocols.md) that the encoder in `folder` was trained by; None where it does not say."""
    return read_json(folder / "config.json")["provenance"].get("protocol")


def encoder_trained_on(folder: Path) -> list[dict[str, Any]]:
    """What the encoder in `folder` was trained on, stage by stage (`cadiff.data.trained_on`); nothing where it does not say."""
    return read_json(folder / "config.json")["provenance"].get("trained_on", [])


def fit_preprocessor(
    dataset: BrainDataset, config: PreprocessConfig, *, patch_size: int, num_voxels: int | None = None
) -> Preprocessor:
    """Preprocessing measured on the training trials of `dataset`, or on unlabelled ones where it has none.

    With `test_normalisation=pooled`, test trials are measured too. Raises DataError when the dataset has only
    test trials.
    """
    rows = dataset.rows("train")
    rows = rows if len(rows) else dataset.rows("unlabelled")
    if len(rows) == 0:
        raise DataError(
            f"{dataset.folder} has only test trials; expected split train or unlabelled in trials.tsv."
        )
    if config.test_normalisation == "pooled":
        rows = np.sort(np.concatenate([rows, dataset.rows("test")]))
    try:
        return Preprocessor.fit(
            dataset.betas if len(rows) == len(dataset.trials) else dataset.betas[rows],
            config,
            patch_size=patch_size,
            num_voxels=num_voxels,
            voxels=dataset.voxels,
            noise_ceiling=dataset.voxels["noise_ceiling"].to_numpy(),
        )
    except DataError:
        dataset.refuse_non_finite(rows)  # only here is it known which trials those rows are
        raise


def preprocessor_for(
    dataset: BrainDataset, encoder: FmriEncoder, config: PreprocessConfig, *, own_length: bool = False
) -> Preprocessor:
    """These settings at the length of an encoder, with the statistics of *this* subject's training trials.

    An encoder may come from other subjects, whose voxels are others; for the subject it was trained on, and the
    settings stored beside it, the statistics come out as they are stored. `own_length`: at the length that the
    subject's voxels come to by themselves.

    Warns where an encoder of another length does more to the voxels than filling up a patch.
    """
    sizes = encoder.config
    length = None if own_length else sizes.num_voxels
    fitted = fit_preprocessor(dataset, config, patch_size=sizes.patch_size, num_voxels=length)
    if length:
        warn_of_length(dataset, fitted, "take an encoder of their length")
    return fitted


def warn_of_length(dataset: BrainDataset, fitted: Preprocessor, instead: str) -> None:
    """Warns where the length that an encoder reads does more to the voxels than filling up a patch.

    Args:
        instead: what helps beside choosing voxels, where there are too many.
    """
    num, length, config = len(fitted.voxel_index), fitted.num_voxels, fitted.config
    remark = length_remark(num, length, config.length_policy, patch_size=fitted.patch_size)
    if remark is None:
        return
    advice = f" Choose voxels by preprocess.rois, or {instead}." if num > length else ""
    chosen = "" if config.rois is None else f" in {', '.join(config.rois)}"
    warnings.warn(
        f"{dataset.folder} has {num:,} voxels{chosen} and the encoder reads {length:,}: {remark}.{advice}",
        stacklevel=1,
    )
