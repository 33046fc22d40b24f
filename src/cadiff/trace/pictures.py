"""The last station: pictures that the pipeline drew, on the same components as what is read out of the others.

No probe stands between a picture and its components, so it is told apart by what it shows. Beside each sample the mean of the
samples' components is compared: a linear prediction is a mean over all pictures that fit, and one sample is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cadiff.errors import ArtifactError, DataError
from cadiff.evaluate.circular import choosers, refuse_circular
from cadiff.evaluate.pictures import Reconstructions, open_reconstructions
from cadiff.evaluate.settings import EvaluateConfig

PICTURE = "picture"
CONDITIONS = {
    "brain": (PICTURE, "Picture", "each sample drawn from the brain"),
    "label_oracle": (
        "label_oracle",
        "Picture of the true label",
        "the prior told the class instead of betas",
    ),
    "autoencoded": ("autoencoded", "Auto-encoded stimulus", "perfect latents: the ceiling of pictures"),
    "prior_only": (
        "prior_only",
        "Picture without a brain",
        "what the prior draws anyway: the floor of pictures",
    ),
}
"""Condition of the folder -> station, label, meaning."""
AVERAGED = "_averaged"
PAST_THE_CONTEXT = ("likelihood", "rerank", "class_start")
"""Settings of `reconstruct` by which betas reach a picture by another way than the context that is traced."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """Pictures of one condition."""

    name: str
    label: str
    meaning: str
    images: np.ndarray
    """uint8 (stimuli, samples, H, W, 3), stimuli in the order asked for."""


def open_drawn(folder: Path, pipeline: str, split: str, judge: str) -> Reconstructions:
    """A folder of `cadiff reconstruct` by a pipeline.

    Args:
        pipeline: digest of the pipeline folder. split: the trials that are traced. judge: as `judge_target` takes it.

    Raises:
        ArtifactError: no such folder, or of another pipeline. DataError: of other trials, or without a brain.
        ConfigError: the judge had a say in the pictures.
    """
    found = open_reconstructions(folder)
    drawn_by = ((found.about.get("provenance") or {}).get("inputs") or {}).get("pipeline")
    if drawn_by != pipeline:
        raise ArtifactError(
            f"{folder} was not drawn by this pipeline: trace the pipeline that drew it, or draw again with `cadiff reconstruct`."
        )
    shown = (found.about.get("config") or {}).get("split", "test")
    if shown != split:
        raise DataError(
            f"{folder} shows the {shown} stimuli, and the {split} trials are traced: leave --reconstructions out, or draw them "
            f"with `cadiff reconstruct --set split={split}`."
        )
    if "brain" not in found.conditions:
        raise DataError(f"{folder} holds no condition 'brain' (it has: {', '.join(found.conditions)}).")
    refuse_chooser(judge, choosers(found.about), folder)
    return found


def other_ways(found: Reconstructions) -> list[str]:
    """A remark where the betas reached the pictures by other ways than the context too, else none."""
    config = found.about.get("config") or {}
    named = [key for key in PAST_THE_CONTEXT if config.get(key)]
    if not named:
        return []
    return [
        f"The pictures were drawn with {' and '.join(named)}, by which betas reach them directly, through an encoding model, and "
        "not only through the context: a picture may hold more of the stimulus than the context does, and the difference between "
        "the two is not what drawing loses."
    ]


def refuse_chooser(judge: str, networks: Sequence[str], where: Path) -> None:
    """Raises ConfigError where the judge is one of the networks that had a say in what is in `where`."""
    name, _, path = judge.partition("=")
    looks = {"judge": None, "eyes": {name: path}} if path else {"judge": judge}
    refuse_circular(EvaluateConfig.model_validate(looks), networks, where)


def drawn_pictures(found: Reconstructions, stimulus_ids: Sequence[str], side: int) -> Iterator[Drawn]:
    """The conditions of a folder that are stations, at `side` pixels square."""
    order = [found.stimulus_ids.index(name) for name in stimulus_ids]
    for condition, about in CONDITIONS.items():
        if condition in found.conditions:
            yield Drawn(*about, found.images(condition, side)[order])
