"""The start of the condition for training trials, each by a fit that never saw its stimulus: as tuning gave it to the network.

A pipeline with a label start or an image start keeps the fit on all training trials. On test trials that fit is a fixed map like
any other station's, and a read-out of it, learnt from what it makes of the training trials, is scored on stimuli that neither has
seen. Held-out values would do harm there: they come from one fit a fold, none of which is the one that test trials go through.
Where training trials themselves are scored (split train) it is the other way round: in the pipeline's own start of a training
trial lies what that trial showed. So there the start is fitted again, by the function that tuning called
(`cadiff.diffuse.trials`), and its held-out values are taken; the new fit on all trials is compared with the pipeline's, to show
that it is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cadiff.artifacts import read_json
from cadiff.data.dataset import BrainDataset
from cadiff.diffuse.conditioner import FmriConditioner
from cadiff.diffuse.pipeline import FmriToImagePipeline
from cadiff.diffuse.settings import DiffuseConfig
from cadiff.diffuse.trials import Trials, fit_image_start, fit_label_start
from cadiff.errors import DataError
from cadiff.priors.load import ImagePrior

ALIKE = 1e-2
"""Largest difference of two fits of one start, over the size of its values, that rounding may make on another machine."""


def tuning_settings(pipeline: Path) -> dict[str, Any]:
    """What the run of `diffuse` around a pipeline folder recorded of the starts; empty where the folder was moved out of it."""
    record = pipeline.parent / "run.json"
    found = (read_json(record).get("config") or {}) if record.is_file() else {}
    return {key: found[key] for key in ("start_groups", "fit", "own_length") if key in found}


def own_start(conditioner: FmriConditioner) -> Any:
    """The label start or the image start of a pipeline, or None."""
    return conditioner.start or conditioner.image_start


def starting_eyes(conditioner: FmriConditioner) -> list[str]:
    """The network whose features an image start predicts, which must not judge."""
    return [] if conditioner.image_context is None else [conditioner.image_context.config["eye"]]


def held_out_start(
    pipe: FmriToImagePipeline, data: BrainDataset, betas: Tensor, settings: Mapping[str, Any]
) -> tuple[Tensor | None, str | None]:
    """The held-out start of each training trial, and a remark where it may not be what tuning used.

    Args:
        betas: (n, V) preprocessed betas of the training trials. settings: of `tuning_settings`.

    Raises:
        DataError: the labels that the start was fitted to are not in this dataset.
    """
    conditioner = pipe.conditioner
    own = own_start(conditioner)
    if own is None:
        return None, None
    with_image, context = conditioner.start is None, conditioner.image_context
    config = DiffuseConfig.model_validate(
        {
            "label_start": not with_image,
            "image_start": with_image,
            "start_groups": settings.get("start_groups", "stimulus"),
            "fit": {"seed": (settings.get("fit") or {}).get("seed", 0)},
        }
    )
    prior = ImagePrior(
        pipe.vqvae,
        pipe.unet,
        pipe.scheduler,
        scaling_factor=pipe.vqvae.config["scaling_factor"],
        label_embedding=None if with_image else conditioner.get_buffer("label_embedding").cpu(),
        image_context=None if context is None else deepcopy(context).cpu(),
    )
    shown = data.trials["stimulus_id"].to_numpy()[data.rows("train")]
    stimulus_ids = sorted(set(shown))
    place = {name: i for i, name in enumerate(stimulus_ids)}
    places = torch.tensor([place[name] for name in shown]).numpy()
    trials = Trials(betas.cpu(), places, [str(name) for name in stimulus_ids], torch.empty(0))
    if with_image:
        fitted, trials, _ = fit_image_start(config, data, trials, prior)
    else:
        fitted, trials, _ = fit_label_start(config, data, trials, prior, _labels(conditioner, data))
    if fitted is None or trials.start is None:
        raise DataError(
            f"The pipeline begins at the labels of its stimuli, and {data.folder} knows none of them: trace it on the dataset "
            "that it was tuned on."
        )
    stored, again = own(betas).cpu(), fitted(betas.cpu())
    if (stored - again).abs().max() <= ALIKE * stored.abs().max():
        return trials.start, None
    return trials.start, (
        "The start was fitted again for held-out values, and the new fit is not the pipeline's: start, context and time vector "
        "are read out with values for training trials that tuning may not have used."
    )


def _labels(conditioner: FmriConditioner, data: BrainDataset) -> dict[str, int]:
    table = data.stimuli.loc[data.stimulus_ids("train")]
    rows = conditioner.label_rows(list(table["label"]), list(table["imagenet_index"]))
    return {str(name): row for name, row in zip(table.index, rows, strict=True) if row is not None}
