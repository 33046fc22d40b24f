"""What the pages read from disk: an evaluation folder, and the pictures and the dataset that it scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cadiff.artifacts import folder_digest, read_json
from cadiff.data.dataset import BrainDataset
from cadiff.errors import ArtifactError
from cadiff.evaluate.pictures import open_stimuli, read_picture
from cadiff.framing import central

TEXT = {"condition": str, "stimulus_id": str, "file": str, "origin": str}


@dataclass(frozen=True)
class Evaluated:
    """An evaluation with everything a page shows of it; nothing has changed since it was scored."""

    folder: Path
    scores: dict[str, Any]
    """The whole evaluation.json."""
    images: pd.DataFrame
    """per_image.tsv: one row a condition and stimulus."""
    samples: pd.DataFrame
    """per_sample.tsv: one row a picture; `origin` names its folder, empty for the first."""
    pictures: dict[str, Path]
    """Folder of pictures by origin."""
    about: dict[str, Any]
    """config.json of the reconstructions; empty for a folder of somebody else's pictures."""
    dataset: Path
    stimuli: pd.DataFrame
    """As `open_stimuli` gives them: indexed by stimulus_id, with path, label and split."""
    subject: BrainDataset | None
    """None where the stimuli are a mere folder of pictures."""

    @property
    def metric(self) -> str:
        """The metric that the page leads with."""
        return self.scores["headline"]["metric"]

    @property
    def primary(self) -> str:
        """The condition that the page is about."""
        return self.scores["headline"]["condition"]

    @property
    def stimulus_ids(self) -> list[str]:
        """The stimuli that were scored, in the evaluation's order."""
        return self.images.loc[self.images["condition"] == self.primary, "stimulus_id"].tolist()

    @property
    def variants(self) -> dict[str, Any]:
        """Conditions that read part of the brain: {"kind": "repeats" | "only_roi" | "without_roi", "value": ...}."""
        found = self.scores.get("variants", self.about.get("variants")) or {}
        return {name: about for name, about in found.items() if name in self.scores["conditions"]}

    @property
    def repeats(self) -> int | None:
        """How many presentations the primary condition averages; None where that is not known."""
        settings = self.about.get("config") or {}
        if self.subject is None or not settings.get("average_repeats"):
            return None
        trials = self.subject.trials
        shown = trials[trials["split"] == settings.get("split", "test")]["stimulus_id"].value_counts()
        counts = shown.reindex(self.stimulus_ids).dropna()
        return int(counts.median()) if len(counts) else None

    def values(self, condition: str, metric: str) -> pd.Series | None:
        """One score an image, indexed by stimulus; None for conditions without rows, such as controls made of training
        pictures in evaluations that kept only their means."""
        rows = self.images[self.images["condition"] == condition]
        if rows.empty or metric not in rows or rows[metric].isna().any():
            return None
        return rows.set_index("stimulus_id")[metric].astype(float)

    def rows(self, condition: str, stimulus_id: str) -> pd.DataFrame:
        """The pictures of one condition and stimulus; none for conditions that are no pictures of ours."""
        chosen = (self.samples["condition"] == condition) & (self.samples["stimulus_id"] == stimulus_id)
        return self.samples[chosen]

    def picture(self, row: Any) -> np.ndarray:
        """The picture uint8 (H, W, 3) of a row of `samples`."""
        return read_picture(self.pictures[str(row["origin"])] / str(row["file"]))

    def stimulus(self, stimulus_id: str) -> np.ndarray:
        """The part of what was seen that was scored, uint8 (H, W, 3), in its own size."""
        scored = self.scores["pictures"]
        picture = read_picture(Path(str(self.stimuli.at[stimulus_id, "path"])))
        return central(picture, (scored["height"], scored["width"]))


def open_evaluated(
    evaluation: Path, *, reconstructions: Path | None = None, dataset: Path | None = None
) -> Evaluated:
    """Opens an evaluation and finds what it scored.

    Args:
        evaluation: folder of `evaluate`; it records where the rest lies, relative to itself.
        reconstructions, dataset: their folders, where they were moved since.

    Raises:
        ArtifactError: not an evaluation, or its pictures are gone or changed since they were scored.
    """
    evaluation = Path(evaluation)
    scores = read_json(evaluation / "evaluation.json")
    if not isinstance(scores, dict) or scores.get("kind") != "evaluation":
        raise ArtifactError(f"{evaluation} holds no evaluation; make one with `cadiff evaluate`.")
    pictures = _locate(evaluation, scores, "reconstructions", reconstructions)
    if folder_digest(pictures) != scores["inputs"]["reconstructions_sha256"]:
        raise ArtifactError(f"{pictures} has changed since it was scored: evaluate it again.")
    folders = {"": pictures}
    for name, rival in scores["inputs"].get("against", {}).items():
        folders[name] = (evaluation / rival["folder"]).resolve()
        if not folders[name].is_dir() or folder_digest(folders[name]) != rival["sha256"]:
            raise ArtifactError(
                f"{folders[name]} ({name}) is gone or has changed since it was scored: evaluate it again."
            )
    data = _locate(evaluation, scores, "dataset", dataset)
    images, samples = _tables(evaluation)
    about = pictures / "config.json"
    return Evaluated(
        evaluation,
        scores,
        images,
        samples,
        folders,
        read_json(about) if about.is_file() else {},
        data,
        open_stimuli(data),
        BrainDataset.open(data) if (data / "dataset_description.json").is_file() else None,
    )


def _locate(evaluation: Path, scores: Mapping[str, Any], name: str, given: Path | None) -> Path:
    folder = Path(given) if given is not None else (evaluation / scores["inputs"][name]).resolve()
    if not folder.is_dir():
        raise ArtifactError(
            f"The {name} that {evaluation} scored are not at {folder}: "
            f"move them back, or name their folder ({name}=...)."
        )
    return folder


def _tables(evaluation: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """per_image.tsv and per_sample.tsv."""
    options: dict[str, Any] = {"sep": "\t", "dtype": TEXT, "keep_default_na": False, "na_values": ["n/a"]}
    for name in ("per_image.tsv", "per_sample.tsv"):
        if not (evaluation / name).is_file():
            raise ArtifactError(f"{evaluation} lacks {name}: evaluate again.")
    images, samples = (
        pd.read_csv(evaluation / name, **options) for name in ("per_image.tsv", "per_sample.tsv")
    )
    # older evaluations scored one folder only
    return images, samples.fillna({"origin": ""}) if "origin" in samples else samples.assign(origin="")
