"""What a model was trained on, and whether it may decode the test trials of a dataset.

A model that is opened again never saw its new dataset, so the leak audit of `check_disjoint` cannot find what it was trained
on; this record does, by stimulus id and by the sha256 of the picture. Encoders and pipelines hold one entry for every
stage and dataset that they went through, baselines and encoding models one for the fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.data.dataset import BrainDataset
from cadiff.errors import DataError

UNSEEN_PICTURES = "contrast"
"""The stage that looks at betas alone: the fMRI of another person may answer to any picture there."""


def trained_on(dataset: BrainDataset, rows: np.ndarray) -> dict[str, Any]:
    """JSON values: name, subject, num_voxels, and the stimuli of these trials as id -> sha256 (None without a picture)."""
    return {
        "name": str(dataset.description.get("name", "n/a")),
        "subject": _subject(dataset),
        "num_voxels": len(dataset.voxels),
        "stimuli": _stimuli(dataset, rows),
    }


def stages_trained_on(
    stage: str,
    before: Iterable[Mapping[str, Any]],
    datasets: Sequence[BrainDataset],
    rows: Sequence[np.ndarray],
) -> list[dict[str, Any]]:
    """The entries `before`, then one for each of `datasets` that `stage` trains on, with the key "stage"."""
    now = ({"stage": stage, **trained_on(*each)} for each in zip(datasets, rows, strict=True))
    return [*(dict(entry) for entry in before), *now]


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


def refuse_tested(
    entries: Iterable[Mapping[str, Any]], datasets: Sequence[BrainDataset], folder: Path | str
) -> None:
    """Raises `DataError` if what lies in `folder`, or is called so, was trained on a test stimulus of one of `datasets`.

    A picture counts wherever it was seen, by its sha256; an id counts for the same subject of the same dataset, and for
    other subjects of it where a checksum is not known. What phase 1 read counts for the same subject alone.
    """
    for entry in entries:
        shown = entry["stimuli"]
        pictures = {sha256: stimulus for stimulus, sha256 in shown.items() if sha256}
        for dataset in datasets:
            same_name = entry["name"] == str(dataset.description.get("name", "n/a"))
            same = same_name and entry["subject"] == _subject(dataset)
            if entry["stage"] == UNSEEN_PICTURES and not same:
                continue
            found = []
            for stimulus, sha256 in _stimuli(dataset, dataset.rows("test")).items():
                unknown = sha256 is None or shown.get(stimulus) is None
                if stimulus in shown and (same or (same_name and unknown)):
                    found.append((stimulus, stimulus))
                elif sha256 in pictures:
                    found.append((stimulus, pictures[sha256]))
            if found:
                test, there = found[0]
                raise DataError(
                    f"{folder} was trained ({entry['stage']}) on test stimulus {test!r} of {dataset.folder} (there {there!r} of "
                    f"{entry['subject']}; {len(found)} such): train it anew without them, or test on others (cadiff data split)."
                )


def _subject(dataset: BrainDataset) -> str:
    return str(dataset.description.get("subject", "n/a"))


def _stimuli(dataset: BrainDataset, rows: np.ndarray) -> dict[str, str | None]:
    hashes = dataset.stimuli["sha256"]
    shown = dict.fromkeys(str(name) for name in dataset.trials["stimulus_id"].to_numpy()[rows])
    return {name: found if isinstance(found := hashes.get(name), str) else None for name in shown}
