"""Where the folders of one run lie: as `cadiff run` and `cadiff demo` make them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cadiff.artifacts import read_json, what_is_at
from cadiff.errors import ArtifactError

DATASET = "dataset_description.json"


@dataclass(frozen=True)
class Places:
    """The folders that a trace reads."""

    dataset: Path
    pipeline: Path
    encoders: tuple[Path, ...] = ()
    reconstructions: Path | None = None


def run_of(pipeline: Path) -> Path:
    """The folder in which the run of `diffuse` with this pipeline, or this run itself, was made."""
    return (pipeline.parent if (pipeline / "model_index.json").is_file() else pipeline).parent


def find_run(folder: Path) -> Places:
    """The dataset, the pipeline, its encoders and its reconstructions in the folder of a run, as far as they are there.

    Raises:
        ArtifactError: no such folder; one of a dataset alone; or the dataset that the run was made from is gone.
    """
    if not (folder / "diffuse").is_dir():
        if (folder / DATASET).is_file():
            raise ArtifactError(
                f"{folder} is a dataset: name the pipeline that was tuned on it with --pipeline (made by `cadiff diffuse`)."
            )
        raise ArtifactError(
            f"{folder} is neither the folder of a run nor a dataset (found: {what_is_at(folder)}; expected diffuse/ or "
            f"{DATASET}): give what `cadiff run` made, or a dataset and --pipeline."
        )
    encoders = tuple(path for name in ("contrast", "attend") if (path := folder / name / "encoder").is_dir())
    drawn = folder / "reconstructions"
    return Places(_dataset(folder), folder / "diffuse", encoders, drawn if drawn.is_dir() else None)


def _dataset(folder: Path) -> Path:
    """The simulated subject in the folder, else the dataset that the run was given."""
    if (folder / "subject" / DATASET).is_file():
        return folder / "subject"
    record = folder / "experiment.json"
    given = (read_json(record).get("sources") or {}).get("dataset") if record.is_file() else None
    if given is None or not (Path(given) / DATASET).is_file():
        where = f"; its record names {given}" if given else ""
        raise ArtifactError(
            f"{folder} holds no subject/{where}: name the dataset, and the pipeline with --pipeline {folder / 'diffuse'}."
        )
    return Path(given)
