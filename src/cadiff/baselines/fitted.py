"""A fitted baseline as a self-describing folder, and who it may reconstruct.

config.json         kind "baseline": its name, options, the subject, and the stimuli that it was fitted on (id -> sha256)
model.safetensors   what was learnt

A folder is opened for a dataset of the same subject; test stimuli that it was fitted on are refused, by id and by picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cadiff.artifacts import load_artifact, save_artifact
from cadiff.data.dataset import BrainDataset
from cadiff.data.preprocess import PreprocessConfig, Preprocessor
from cadiff.data.trained_on import refuse_unfit, trained_on
from cadiff.errors import ArtifactError, DataError
from cadiff.priors.load import ImagePrior, load_prior, shipped_prior

KIND = "baseline"


class State(NamedTuple):
    """What a fitted baseline is made of."""

    config: dict[str, Any]
    """JSON values; weights of others (an image prior) are named here with their digest, and not copied."""
    tensors: dict[str, Tensor]
    """Everything learnt, by name; parts of a network may have their `state_dict` names behind a prefix."""


def put(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors or arrays behind a prefix; `take` is the inverse."""
    return {f"{prefix}.{name}": torch.as_tensor(value) for name, value in tensors.items()}


def take(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `put` put behind this prefix."""
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def preprocessor_state(preprocessor: Preprocessor) -> State:
    """A fitted preprocessing as a part of a state; `preprocessor_of` is the inverse."""
    config = {"preprocess": preprocessor.config.model_dump(mode="json")}
    return State(config, put("preprocess", preprocessor.to_tensors()))


def preprocessor_of(state: State) -> Preprocessor:
    """The preprocessing that is a part of this state."""
    config = PreprocessConfig(**state.config["preprocess"])
    arrays = {name: value.numpy() for name, value in take("preprocess", state.tensors).items()}
    return Preprocessor.from_tensors(config, arrays)


def prior_state(prior: ImagePrior) -> dict[str, str]:
    """What a config says of an image prior: where it is, and its digest."""
    shipped = prior.folder == shipped_prior()
    return {"prior": "shipped" if shipped else str(prior.folder), "prior_digest": prior.digest}


def check_prior(state: State) -> ImagePrior:
    """The prior that a state names.

    Raises:
        ArtifactError: it is gone, or another one by now.
    """
    prior = load_prior(state.config["prior"])
    if prior.digest != state.config["prior_digest"]:
        raise ArtifactError(
            f"The image prior {state.config['prior']} is not the one that this baseline was fitted with: fit it again."
        )
    return prior


def save_fitted(
    folder: Path,
    name: str,
    state: State,
    *,
    options: Mapping[str, Any],
    dataset: BrainDataset,
    rows: np.ndarray,
    facts: Mapping[str, Any],
) -> Path:
    """Writes a fitted baseline; `load_fitted` is the inverse.

    Args:
        folder: the folder to make.
        name: of the baseline, as `run_baseline` takes it.
        options: that it was fitted with, JSON values.
        dataset: what it was fitted on. rows: the training trials.
        facts: provenance.
    """
    config = {
        "baseline": name,
        "options": dict(options),
        "trained_on": trained_on(dataset, rows),
        "state": state.config,
    }
    return save_artifact(folder, kind=KIND, config=config, tensors=state.tensors, provenance=facts)


def load_fitted(folder: Path, name: str, dataset: BrainDataset) -> tuple[State, dict[str, Any]]:
    """State and options of a fitted baseline that may reconstruct the test trials of `dataset`.

    Raises:
        ArtifactError: no such folder, or damaged.
        DataError: another baseline or subject, other voxels, or a test stimulus that it was fitted on.
    """
    if not (folder / "config.json").is_file() or (folder / "samples.tsv").is_file():
        folder = folder / "model"  # the reconstructions folder around it is as good
    config, tensors = load_artifact(folder, KIND)
    if config["baseline"] != name:
        raise DataError(f"{folder} holds the baseline {config['baseline']!r}, not {name!r}: name that one.")
    refuse_unfit(config["trained_on"], dataset, folder)
    return State(config["state"], tensors), config["options"]
