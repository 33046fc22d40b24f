"""Who a fitted model was fitted on, and whether it may decode the test trials of a dataset.

A model that is opened again never saw its new dataset, so the leak audit of `check_disjoint` cannot find what it was fitted
on; this record does, by stimulus id and by the sha256 of the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.data.dataset import BrainDataset
from cadiff.errors import DataError


def trained_on(dataset: BrainDataset, rows: np.ndarray) -> dict[str, Any]:
    """JSON values: subject, num_voxels, and the stimuli of these trials as id -> sha256 (None without a picture)."""
    return {
        "subject": _subject(dataset),
        "num_voxels": len(dataset.voxels),
        "stimuli": _stimuli(dataset, rows),
    }


def refuse_unfit(record: Mapping[str, Any], dataset: BrainDataset, folder: Path) -> None:
    """Raises `DataError` unless a model with this record may decode the test trials of `dataset`."""
    if (record["subject"], record["num_voxels"]) != (_subject(dataset), len(dataset.voxels)):
        raise DataError(
            f"{folder} was fitted on {record['num_voxels']} voxels of {record['subject']}, but {dataset.folder} has "
            f"{len(dataset.voxels)} of {_subject(dataset)}: voxels of one subject mean nothing to a decoder of another."
        )
    pictures = {sha256: stimulus for stimulus, sha256 in record["stimuli"].items() if sha256}
    for stimulus, sha256 in _stimuli(dataset, dataset.rows("test")).items():
        seen = stimulus if stimulus in record["stimuli"] else pictures.get(sha256)
        if seen is not None:
            raise DataError(
                f"{folder} was fitted on test stimulus {stimulus!r} of {dataset.folder} (there {seen!r}): fit it on trials "
                "without it."
            )


def _subject(dataset: BrainDataset) -> str:
    return str(dataset.description.get("subject", "n/a"))


def _stimuli(dataset: BrainDataset, rows: np.ndarray) -> dict[str, str | None]:
    hashes = dataset.stimuli["sha256"]
    shown = dict.fromkeys(str(name) for name in dataset.trials["stimulus_id"].to_numpy()[rows])
    return {name: found if isinstance(found := hashes.get(name), str) else None for name in shown}
