"""What the third stage trains on: preprocessed betas, latents of the pictures, and the closed-form starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cadiff.data.dataset import BrainDataset
from cadiff.diffuse.latents import crop_latents
from cadiff.diffuse.settings import DiffuseConfig
from cadiff.diffuse.start import ImageStart, LabelStart, LatentStart
from cadiff.encoding.simulated import warn_of_the_truth
from cadiff.errors import ConfigError, DataError
from cadiff.priors.load import ImagePrior
from cadiff.priors.seeing import picture_coordinates


@dataclass(frozen=True)
class Trials:
    """The training trials, ready: one row a trial."""

    betas: Tensor
    """(n, V) preprocessed."""
    stimulus: np.ndarray
    """(n,) position in `stimulus_ids` and `latents`."""
    stimulus_ids: list[str]
    latents: Tensor
    """(stimuli, 1 + crops, c, h, w)."""
    start: Tensor | None = None
    """(n, C) held-out label start, or (n, F) held-out image start."""

    def batch(self, index: np.ndarray) -> dict[str, Tensor]:
        """The trials of a batch as tensors."""
        found = {"betas": self.betas[index], "latents": self.latents[self.stimulus[index]]}
        return found if self.start is None else {**found, "start": self.start[index]}


def read_trials(config: DiffuseConfig, data: BrainDataset, betas: np.ndarray, prior: ImagePrior) -> Trials:
    """The training trials with the latents of their pictures; `betas` (n, V) are their preprocessed betas."""
    shown = data.trials["stimulus_id"].to_numpy()[data.rows("train")]
    stimulus_ids = sorted(set(shown))  # so that subjects who saw the same pictures share their latents
    place = {stimulus_id: i for i, stimulus_id in enumerate(stimulus_ids)}
    crops = config.num_crops if config.crop_probability > 0 else 0
    latents = crop_latents(
        data, stimulus_ids, prior, num_crops=crops, crop_ratio=config.crop_ratio, seed=config.fit.seed
    )
    return Trials(torch.from_numpy(betas), np.array([place[s] for s in shown]), stimulus_ids, latents)


def refuse_unfit(config: DiffuseConfig, prior: ImagePrior) -> None:
    """Raises ConfigError unless the prior has what these settings ask of one."""
    if config.null == "label" and prior.null_label is None:
        raise ConfigError(
            "This prior has no null label: choose diffuse.null=learned (with condition_dropout) or diffuse.null=mean."
        )
    if config.label_start and prior.label_embedding is None:
        raise ConfigError(
            "label_start needs a prior with a label table: switch it off with --set diffuse.label_start=false, or choose another "
            "prior."
        )
    if config.image_start:
        context = prior.image_context
        if context is None:
            raise ConfigError(
                "image_start needs a prior that was adapted to features of pictures: make one with `cadiff prior adapt`, or "
                "--set diffuse.image_start=false."
            )
        if context.num_tokens != config.context_length:
            raise ConfigError(
                f"This prior makes {context.num_tokens} context tokens of a picture's features, and context_length is "
                f"{config.context_length}: --set diffuse.context_length={context.num_tokens}."
            )


def start_labels(config: DiffuseConfig, data: BrainDataset, prior: ImagePrior) -> dict[str, int]:
    """Stimulus -> row of the prior's label table, for training stimuli of a class it knows; empty without label_start."""
    refuse_unfit(config, prior)
    if not config.label_start:
        return {}
    table = data.stimuli.loc[data.stimulus_ids("train")]
    rows = prior.label_rows(list(table["label"]), list(table["imagenet_index"]))
    known = {name: row for name, row in zip(table.index, rows, strict=True) if row is not None}
    if len(set(known.values())) < 2:
        raise DataError(
            f"label_start needs training stimuli of at least two of the prior's {len(prior.classes)} classes; "
            f"the labels of {data.folder} match {len(set(known.values()))}: switch it off "
            "with --set diffuse.label_start=false."
        )
    return known


def fit_label_start(
    config: DiffuseConfig, data: BrainDataset, trials: Trials, prior: ImagePrior, labels: Mapping[str, int]
) -> tuple[LabelStart | None, Trials, dict[str, Any]]:
    """The label start, the trials with their held-out start, and what to write into the provenance."""
    if not labels or prior.label_embedding is None:
        return None, trials, {}
    known = [i for i, place in enumerate(trials.stimulus) if trials.stimulus_ids[place] in labels]
    stimuli, groups = _stimuli(trials), _groups(config, data, trials)
    start, held_out, ridge = LabelStart.fit(
        trials.betas[known],
        torch.tensor([labels[trials.stimulus_ids[trials.stimulus[i]]] for i in known]),
        prior.label_embedding,
        [stimuli[i] for i in known],
        hold_out=[groups[i] for i in known],
        seed=config.fit.seed,
    )
    values = start(trials.betas)  # trials of unknown classes took no part in the fit: theirs are held out too
    values[known] = held_out
    facts = {"cosine": ridge.score, "penalty": ridge.penalty, "trials": len(known)}
    return start, replace(trials, start=values), {"label_start": facts}


def fit_image_start(
    config: DiffuseConfig, data: BrainDataset, trials: Trials, prior: ImagePrior
) -> tuple[ImageStart | None, Trials, dict[str, Any]]:
    """The image start, the trials with their held-out start, and what to write into the provenance."""
    if not config.image_start:
        return None, trials, {}
    if prior.image_context is not None:
        warn_of_the_truth([prior.image_context.config["eye"]], data)
    coordinates = picture_coordinates(prior, data.images(trials.stimulus_ids, size=prior.image_size))
    start, held_out, ridge = ImageStart.fit(
        trials.betas, coordinates[trials.stimulus], _stimuli(trials), seed=config.fit.seed
    )
    return start, replace(trials, start=held_out), {"image_start": ridge.facts()}


def fit_latent_start(
    config: DiffuseConfig, data: BrainDataset, trials: Trials
) -> tuple[LatentStart | None, dict[str, Any]]:
    """The latent start, and what to write into the provenance."""
    if config.latent_start == 0:
        return None, {}
    start, ridge = LatentStart.fit(
        trials.betas,
        trials.latents[:, 0],
        _stimuli(trials),
        torch.from_numpy(trials.stimulus),
        num_components=config.latent_start,
        seed=config.fit.seed,
    )
    return start, {"latent_start": {"explained": ridge.score, "penalty": ridge.penalty}}


def _stimuli(trials: Trials) -> list[str]:
    return [trials.stimulus_ids[i] for i in trials.stimulus]


def _groups(config: DiffuseConfig, data: BrainDataset, trials: Trials) -> list[str]:
    names = trials.stimulus_ids
    if config.start_groups == "class":
        labels = data.stimuli.loc[names, "label"]
        names = [
            str(label) if isinstance(label, str) else name for name, label in zip(names, labels, strict=True)
        ]
    return [names[i] for i in trials.stimulus]
